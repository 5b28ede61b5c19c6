"""The measurements: files built once, rounds taken in turns, failures turned into reasons.

Engines that share a process disturb each other's threads, so each has one of its own, and while one works the others wait
on a pipe.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.engines import REFERENCE, engine
from benchmarks.peers.models import Model, Shape
from benchmarks.peers.processes import FailedError, Setting, Worker, ask

Row = dict[str, Any]
REST_SECONDS = 0.05
"""Before each round: threads of OpenMP and thread pools spin for some milliseconds after their last work, then sleep."""


def folder_of(setting: Setting, model: Model, name: str, kind: str) -> Path:
    return setting.work / model.name / kind / engine(name, setting.folders).artefact


def build(setting: Setting, model: Model, name: str, kind: str, threads: int) -> int:
    """Have the engine's files made, unless they are there; their bytes.

    Raises:
        FailedError: it cannot be done; asked again, the same reason comes at once.
    """
    folder = folder_of(setting, model, name, kind)
    done = folder.with_name(folder.name + ".json")
    missing = engine(name, setting.folders).missing()
    if missing or str(folder) in setting.failed:
        raise FailedError(missing or setting.failed[str(folder)])
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
        folder.mkdir(parents=True)
        try:
            answer = ask(setting, model, name, "build", threads, kind=kind, folder=str(folder), label=kind)
        except FailedError as error:
            setting.failed[str(folder)] = str(error)
            raise
        done.write_text(json.dumps(answer))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in WEIGHTS)


WEIGHTS = (".safetensors", ".pt", ".pt2", ".onnx", ".xml", ".bin")
"""Files that hold the model; a tokenizer is served with every engine alike."""


def prepare_inputs(setting: Setting, model: Model, shape: Shape) -> Path:
    path = setting.work / model.name / f"inputs-{shape.name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        ask(setting, model, REFERENCE, "inputs", 1, shape=asdict(shape), inputs=str(path), label=shape.name)
    return path


def measure(
    setting: Setting, model: Model, shape: Shape, names: Sequence[str], threads: int, say: Callable[[str], None]
) -> Iterator[Row]:
    """One row an engine, the reference's first. Groups fit into memory; each has a reference of its own to divide by."""
    inputs = prepare_inputs(setting, model, shape)
    rest = [name for name in names if name != REFERENCE]
    first = True
    while first or rest:
        workers: dict[str, Worker] = {}
        rows: dict[str, Row] = {}
        held = 0
        try:
            for name in [REFERENCE, *rest]:
                if name in rest:
                    rest.remove(name)
                rows[name] = {"model": model.name, "shape": shape.name, "threads": threads, "engine": name}
                try:
                    found = start(setting, model, shape, name, threads, inputs, workers)
                    rows[name] |= found
                    held += found["resident_bytes"]
                    say(f"{model.name} {shape.name} {threads} threads, {name}: ready in {found['load_seconds']:.0f} s")
                except FailedError as error:
                    rows[name]["note"] = str(error)
                if held > setting.memory and name != REFERENCE:
                    break
            time_in_turns(setting, workers, rows)
        finally:
            for worker in workers.values():
                worker.stop()
        reference = rows[REFERENCE].get("ms")
        for name, row in rows.items():
            if "ms" in row and reference:
                row["x"] = reference / row["ms"]
            if first or name != REFERENCE:
                yield row
        first = False


def start(
    setting: Setting, model: Model, shape: Shape, name: str, threads: int, inputs: Path, workers: dict[str, Worker]
) -> Row:
    """Start the engine's process into `workers`; what it says of memory, and how far its output is from the reference's."""
    size = build(setting, model, name, shape.kind, threads)
    output = setting.work / model.name / f"output-{shape.name}-{name}.npy"
    worker = Worker(
        setting, model, name, "serve", threads, shape=asdict(shape), inputs=str(inputs), output=str(output),
        folder=str(folder_of(setting, model, name, shape.kind)), label=shape.name,
    )  # fmt: skip
    try:
        answer = worker.answer()
    except FailedError:
        worker.stop()
        raise
    workers[name] = worker
    reference = output.with_name(f"output-{shape.name}-{REFERENCE}.npy")
    error = difference(np.load(output), np.load(reference)) if reference.exists() else None
    if name != REFERENCE:
        output.unlink()
    return {**answer, "bytes": size, "error": error}


def time_in_turns(setting: Setting, workers: dict[str, Worker], rows: dict[str, Row]) -> None:
    """`setting.rounds` rounds of all workers, in a new order each, into `rows`."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    order = random.Random(setting.seed)
    for _ in range(setting.rounds):
        for name in order.sample(list(workers), len(workers)):
            time.sleep(REST_SECONDS)
            try:
                times[name].append(workers[name].round())
            except FailedError as error:
                rows[name]["note"] = str(error)
                workers.pop(name).stop()
    for name in workers:
        low, middle, high = np.percentile(times[name], [25, 50, 75])
        rows[name] |= {"ms": float(middle), "spread": float(high - low) / 2, "rounds": len(times[name])}


def judge(setting: Setting, model: Model, names: Sequence[str], threads: int) -> Iterator[tuple[str, Row]]:
    """(engine, metric and drop) for each; the drop is positive when it is worse, and a share for perplexity."""
    before: float | None = None
    for name in [REFERENCE, *(name for name in names if name != REFERENCE)]:
        try:
            build(setting, model, name, "forward", threads)
            folder = folder_of(setting, model, name, "forward")
            batch = 4 if model.auto_class == "AutoModelForCausalLM" else 16
            found = ask(setting, model, name, "judge", threads, folder=str(folder), batch_size=batch)
        except FailedError as error:
            yield name, {"note": f"metric: {error}"}
            continue
        before = found["metric"] if before is None else before
        drop = (before - found["metric"]) * (1 if found["higher_is_better"] else -1)
        yield name, {**found, "drop": drop / before if found["relative"] else drop}


def difference(found: np.ndarray, reference: np.ndarray) -> float:
    """Relative L2."""
    return float(np.linalg.norm(found.astype(np.float64) - reference) / np.linalg.norm(reference.astype(np.float64)))
