"""The float model's outcomes on the certification data, kept for the next run that needs the very same.

They cost most of the time before a search, and do not depend on what is searched. They are kept in the state folder, under a
hash of everything they depend on: the content of the model's files, the task with its data, shape, batch size, threads,
processor, versions and this package's own sources.
Nothing is kept of quantized checkpoints: each is measured anew, from its files, in a process of its own.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoquant import artifacts
from autoquant.certify.ledger import state_folder
from autoquant.errors import AutoquantError
from autoquant.runtimes.native.build import cap, processor

FOLDER = "floats"
KEPT = 8
"""Models of which outcomes are kept, the latest."""
LARGEST = 64 * 2**20
"""Bytes of outcomes that are kept: those of a task that keeps whole distributions may be larger."""
PARTS = ("split", "shape", "threads", "batch_size")
SOURCE = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "tokenizers")
FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.py", "*.jinja", "*/*.json")
"""Of a model's folder: weights, configuration, tokenizer, code, and the modules of sentence-transformers."""


def place_of(job: Mapping[str, Any]) -> Path | None:
    """The file (json; the values beside it, npz) that holds this job's answer, or would; None where nothing is kept."""
    folder = state_folder()
    if folder is None or job.get("kind") != "evaluate" or not job["model"].get("float"):
        return None
    versions = [importlib.metadata.version(name) for name in PACKAGES] + [content(SOURCE, ("**/*.py", "**/*.[ch]"))]
    machine = [processor(), cap(), os.environ.get("ATEN_CPU_CAPABILITY"), job["model"].get("device", "cpu")]
    task = {
        name: value for name, value in job["task"].items() if name not in ("data", "test_data")
    }  # it has a fingerprint
    what = [task, {name: job.get(name) for name in PARTS}, content(Path(job["model"]["path"])), versions, machine]
    return folder / FOLDER / f"{artifacts.fingerprint(what)}.json"


def recall(place: Path | None, values: Path) -> dict[str, Any] | None:
    """The answer that is kept, its values copied to `values`, and where it was (`remembered`); None if none can be read."""
    if place is None or not place.is_file():
        return None
    with suppress(OSError, AutoquantError, KeyError):
        answer = artifacts.read_json(place)
        with artifacts.atomic(values) as temporary:
            shutil.copyfile(place.with_suffix(".npz"), temporary)
        os.utime(place)
        return {**answer, "values": str(values), "remembered": str(place)}
    return None


def keep(place: Path | None, answer: Mapping[str, Any]) -> None:
    """Keep an answer for the next run, if it is not too large; whatever prevents it is no error."""
    if place is None:
        return
    with suppress(OSError, AutoquantError):
        values = Path(answer["values"])
        if values.stat().st_size > LARGEST:
            return
        with artifacts.atomic(place.with_suffix(".npz")) as temporary:
            shutil.copyfile(values, temporary)
        artifacts.write_json(place, dict(answer))
        found = sorted(place.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in found[:-KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".npz").unlink(missing_ok=True)


def content(folder: Path, patterns: Sequence[str] = FILES) -> str:
    """16 hex digits over names and content of files; by default of those that a model is loaded from."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        digest.update(str(file.relative_to(folder)).encode())
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
