"""Checkpoints of a run measured as a user opens them: written to the run folder, loaded by a fresh process.

What was measured is kept in the folder, so that a resumed run goes on with the same figures. A module that was handed over in
Python cannot be rebuilt elsewhere: its checkpoints are loaded in this process.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autoquant import artifacts, forkserver
from autoquant.certify.worker import job_of, run_job
from autoquant.checkpoint import load, write_checkpoint
from autoquant.evaluation import SETTLED, evaluate_split, forward_call, saved_rows, saved_values, time_models
from autoquant.runtimes import Runtime
from autoquant.runtimes.graph import as_written
from autoquant.session import Session
from autoquant.values import LayerMap

FRESH, WRITTEN = "measurements", "candidates"
ROUNDS, MAX_SECONDS = 25, 20.0
"""Of a timing, at most."""


def fresh_processes(session: Session) -> AbstractContextManager[None]:
    """While open, fresh processes are there at once; not for a module that was handed over, which is measured in this one."""
    return forkserver.serving() if session.module is None else nullcontext()


def checkpoint_of(session: Session, layer_map: LayerMap) -> Path:
    """The folder of the map's checkpoint, written if it is not there."""
    path = session.folder / WRITTEN / key_of(layer_map)
    if not path.is_dir():
        written = write_checkpoint(session.model, layer_map, path, runtime=session.runtime, source=session.loaded.path)
        for note in written["notes"]:
            session.progress.note(note)
    return path


def key_of(layer_map: LayerMap) -> str:
    return artifacts.fingerprint(layer_map.effect())[:8]


def measure(session: Session, name: str, path: Path | None) -> dict[str, Any]:
    """Item values and peak memory of a checkpoint (None: the float32 model) on the certification split."""
    folder = session.folder / FRESH
    made_from = session.stage_fingerprint(name, str(path), None if path is None else artifacts.folder_bytes(path))
    if (folder / f"{name}.npz").is_file() and (
        value := session.resume_from(folder / f"{name}.json", made_from)
    ) is not None:
        return value
    if session.module is not None:
        value = _measure_here(session, name, path, folder)
    else:
        reference = None if path is None else str(folder / "float32.npz")
        job = {**_common_job(session), "kind": "evaluate", "split": "certification", "model": _model_item(session, path),
               "reference": reference, "batch_size": session.settings.eval_batch_size}  # fmt: skip
        session.progress.say(f"  measuring {name} in a fresh process …")
        value = run_job(job, folder, name)
        if where := value.get("remembered"):
            session.progress.say(
                f"  {name}: as it was measured before ({where}; delete that to have it measured again)"
            )
    value["fingerprint"] = made_from
    artifacts.write_json(folder / f"{name}.json", value)
    return value


def measure_latency(session: Session, plain: Mapping[str, LayerMap | None], served: Mapping[str, LayerMap]) -> Any:
    """End-to-end latency of checkpoints, in turns in one process: {"ms": …, "noise": …}, each name → ms.

    Args:
        plain: run as transformers runs them (None: the float32 model).
        served: run as `autoquant.load` does.
    """
    maps = {**plain, **served}
    slow = {name for name, layer_map in served.items() if set(layer_map.layers.values()) == {layer_map.base_dtype}}
    seldom = sorted({*plain, *slow})  # what is not quantized
    made_from = session.stage_fingerprint(
        session.batch_size, session.seq_len, torch.get_num_threads(), session.runtime.description(),
        {name: None if layer_map is None else key_of(layer_map) for name, layer_map in maps.items()},
    )  # fmt: skip
    name = f"latency-{made_from[:8]}"
    file = session.folder / FRESH / f"{name}.json"
    if (value := session.resume_from(file, made_from)) is not None:
        return value
    paths = {name: None if layer_map is None else checkpoint_of(session, layer_map) for name, layer_map in maps.items()}
    if session.module is not None:
        value = _latency_here(session, paths, set(plain), seldom)
    else:
        session.progress.say(f"  timing {len(maps)} models side by side in a fresh process …")
        models = {name: {**_model_item(session, path), "plain": name in plain} for name, path in paths.items()}
        job = {**_common_job(session), "kind": "latency", "rounds": ROUNDS, "max_seconds": MAX_SECONDS,
               "rest_seconds": session.runtime.rest_seconds, "models": models,
               "seldom": seldom, "settled": SETTLED}  # fmt: skip
        value = run_job(job, session.folder / FRESH, name)
    value["fingerprint"] = made_from
    artifacts.write_json(file, value)
    return value


def _measure_here(session: Session, name: str, path: Path | None, folder: Path) -> dict[str, Any]:
    model = session.model if path is None else _open_here(session, path, session.runtime)
    reference = None if path is None else saved_rows(folder / "float32.npz")
    found = evaluate_split(
        model, session.task, "certification", batch_size=session.settings.eval_batch_size, reference=reference,
        is_reference=path is None,
    )  # fmt: skip
    found.save(folder / f"{name}.npz")
    return {
        "metric": found.metric,
        "items": len(found.values),
        "values": str(folder / f"{name}.npz"),
        "peak_memory_bytes": None,
    }


def _latency_here(
    session: Session, paths: Mapping[str, Path | None], plain: set[str], seldom: Sequence[str]
) -> dict[str, Any]:
    example = session.task.example(session.batch_size, session.seq_len)
    models = {
        name: session.model if path is None else _open_here(session, path, None if name in plain else session.runtime)
        for name, path in paths.items()
    }
    for name in plain:
        as_written(models[name])
    found = time_models(
        {name: forward_call(model, session.task, example) for name, model in models.items()},
        rounds=ROUNDS,
        max_seconds=MAX_SECONDS,
        rest_seconds=session.runtime.rest_seconds,
        seldom=seldom,
        settled=SETTLED,
    )
    return {"ms": {n: ms for n, (ms, _) in found.items()}, "noise": {n: noise for n, (_, noise) in found.items()}}


def _open_here(session: Session, path: Path, runtime: Runtime | None) -> nn.Module:
    """A checkpoint of a module that was handed over; one of transformers' classes names its architecture itself."""
    own = None if (path / "config.json").is_file() else copy.deepcopy(session.model)
    return load(path, model=own, runtime=runtime)


def _common_job(session: Session) -> dict[str, Any]:
    return job_of(
        session.task, session.loaded.path, batch_size=session.batch_size, seq_len=session.seq_len,
        trust_remote_code=session.settings.trust_remote_code, quiet=session.progress.quiet,
    )  # fmt: skip


def _model_item(session: Session, path: Path | None) -> dict[str, Any]:
    """How the fresh process opens a model: a checkpoint folder, or the float model with its transformers class."""
    settings = session.settings
    where = {"trust_remote_code": settings.trust_remote_code, "device": settings.device}
    if path is not None:
        return {"path": str(path.resolve()), "runtime": session.runtime.name, **where}
    return {"path": str(session.loaded.path), "float": True, **where}


def load_values(answer: Mapping[str, Any]) -> np.ndarray:
    return saved_values(answer["values"])
