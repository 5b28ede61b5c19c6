"""The certification of a run: rungs written as checkpoints, measured in fresh processes, judged, one of them shipped."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoquant import artifacts
from autoquant.certify.judge import judge
from autoquant.certify.worker import run_job
from autoquant.checkpoint import load, write_checkpoint
from autoquant.evaluation import evaluate_split, forward_call, time_models
from autoquant.layer_maps import make_map
from autoquant.reuse import charge_run
from autoquant.runtimes.graph import as_written
from autoquant.search import ladder
from autoquant.session import Session
from autoquant.values import Candidate, LayerMap, Profile, Verdict

FRESH = "measurements"


@dataclass(frozen=True)
class Rung:
    """A map that is tested on the certification data."""

    label: str
    layer_map: LayerMap
    verdict: Verdict | None
    metric: float
    peak_memory_bytes: int | None
    path: Path


@dataclass(frozen=True)
class Certified:
    """The answer of certification: all rungs tested, in order, and which one is shipped."""

    rungs: tuple[Rung, ...]
    judged: Rung
    shipped: Rung
    status: str
    latency_ms: Mapping[str, float]
    latency_noise_ms: Mapping[str, float]
    peak_memory_bytes: Mapping[str, int | None]


def certify_stage(session: Session, profile: Profile, found: list[Candidate], half: str) -> Certified:
    """Write the rungs as checkpoints, test each in a fresh process on the certification split, ship the last that passed.

    Half precision by itself is a rung, too. The order, smallest divergence on the search split first, is fixed before the
    certification data is touched; testing stops at the first rung that does not pass (fixed-sequence testing, so that all
    rungs share one error rate).
    """
    session.assembler.forget()
    halves = [c for c in found if c.state == "complete" and c.base_dtype == half and set(c.layers.values()) == {half}]
    tested = sorted([*halves[:1], *ladder(found, session.settings.rungs)], key=lambda c: c.divergence)
    maps = [(c.label, make_map(session, c, profile)) for c in tested]
    if not halves:
        floats = {layer.name: half for layer in session.inventory.layers}
        maps.insert(0, (half, LayerMap(layers=floats, base_dtype=half)))
    reference = measure(session, "float32", None)
    expected = _load_values(reference)
    charged = charge_run(session, [layer_map for _, layer_map in maps])
    rungs: list[Rung] = []
    for label, layer_map in maps:
        key = artifacts.fingerprint([layer_map.base_dtype, layer_map.layers, layer_map.input_absmax])[:8]
        path = session.folder / "candidates" / key
        if not path.is_dir():
            write_rung(session, layer_map, path)
        stopped = any(rung.verdict is not None and rung.verdict.status != "PASS" for rung in rungs)
        if stopped and not is_half(layer_map, half):
            continue
        answer = measure(session, f"map-{key}", path)
        verdict = None  # after a rung that did not pass, half precision is measured to be shipped, not judged
        if not stopped:
            values, seed = _load_values(answer), session.settings.seed
            verdict = judge(
                session.task, "certification", expected, values, session.budget, seed=seed,
                confidence=charged.confidence,
            )  # fmt: skip
            verdict = replace(verdict, use=charged.number)
            session.progress.say(
                f"  certify {label}: {verdict.status}, drop {verdict.drop:+.5f}, at most {verdict.upper_bound:.5f}"
            )
        rungs.append(Rung(label, layer_map, verdict, answer["metric"], answer["peak_memory_bytes"], path))
    judged_rungs = [rung for rung in rungs if rung.verdict is not None]
    passed = [rung for rung in judged_rungs if rung.verdict and rung.verdict.status == "PASS"]
    quantized = [rung for rung in judged_rungs if not is_half(rung.layer_map, half)]
    fallback = next(rung for rung in rungs if is_half(rung.layer_map, half))
    shipped = passed[-1] if passed else fallback
    judged = shipped if shipped in quantized or not quantized else quantized[0]
    status = "PASS"
    if not passed or (shipped not in quantized and len(passed) < len(judged_rungs)):
        last = judged_rungs[-1].verdict
        status = last.status if last else status
    times = _latencies(session, {"float32": None, "half": fallback.path, "quantized": judged.path})
    return Certified(
        rungs=tuple(rungs),
        judged=judged,
        shipped=shipped,
        status=status,
        latency_ms=times["ms"],
        latency_noise_ms=times["noise"],
        peak_memory_bytes={
            "float32": reference["peak_memory_bytes"],
            "half": fallback.peak_memory_bytes,
            "quantized": judged.peak_memory_bytes,
        },
    )


def is_half(layer_map: LayerMap, half: str) -> bool:
    return set(layer_map.layers.values()) == {half}


def measure(session: Session, name: str, path: Path | None) -> dict[str, Any]:
    """Item values and peak memory of a checkpoint (None: the float32 model) in a fresh process; kept for a resumed run.

    A module that was handed over in Python cannot be rebuilt elsewhere: its checkpoint is loaded in this process.
    """
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
    value["fingerprint"] = made_from
    artifacts.write_json(folder / f"{name}.json", value)
    return value


def _measure_here(session: Session, name: str, path: Path | None, folder: Path) -> dict[str, Any]:
    model = session.model if path is None else load(path, model=copy.deepcopy(session.model), runtime=session.runtime)
    reference = None if path is None else torch.from_numpy(np.load(folder / "float32.npz")["reduced"])
    found = evaluate_split(
        model, session.task, "certification", batch_size=session.settings.eval_batch_size, reference=reference,
        is_reference=path is None,
    )  # fmt: skip
    with artifacts.atomic(folder / f"{name}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, values=found.values, reduced=found.reduced.numpy())
    return {
        "metric": found.metric,
        "items": len(found.values),
        "values": str(folder / f"{name}.npz"),
        "peak_memory_bytes": None,
    }


def _latencies(session: Session, paths: Mapping[str, Path | None]) -> dict[str, Any]:
    """End-to-end ms of the checkpoints, in turns in one fresh process: floats as transformers runs them."""
    if session.module is not None:
        example = session.task.example(session.batch_size, session.seq_len)
        models = {
            name: session.model
            if path is None
            else load(path, model=copy.deepcopy(session.model), runtime=None if name == "half" else session.runtime)
            for name, path in paths.items()
        }
        as_written(models["half"])
        found = time_models(
            {name: forward_call(model, session.task, example) for name, model in models.items()},
            rounds=25,
            rest_seconds=session.runtime.rest_seconds,
        )
        return {"ms": {n: ms for n, (ms, _) in found.items()}, "noise": {n: noise for n, (_, noise) in found.items()}}
    session.progress.say("  timing float32, half and quantized side by side in a fresh process …")
    job = {**_common_job(session), "kind": "latency", "rounds": 25, "max_seconds": 20.0,
           "rest_seconds": session.runtime.rest_seconds,
           "models": {name: {**_model_item(session, path), "plain": name != "quantized"}
                      for name, path in paths.items()}}  # fmt: skip
    return run_job(job, session.folder / FRESH, "latency")


def _common_job(session: Session) -> dict[str, Any]:
    s = session.settings
    return {
        "task": session.task.spec(),  # type: ignore[attr-defined]
        "processor": str(session.loaded.path),
        "trust_remote_code": s.trust_remote_code,
        "shape": {"batch_size": session.batch_size, "seq_len": session.seq_len},
        "threads": torch.get_num_threads(),
        "quiet": session.progress.quiet,
    }


def _model_item(session: Session, path: Path | None) -> dict[str, Any]:
    """How the fresh process opens a model: a checkpoint folder, or the float model with its transformers class."""
    settings = session.settings
    where = {"trust_remote_code": settings.trust_remote_code, "device": settings.device}
    if path is not None:
        return {"path": str(path.resolve()), "runtime": session.runtime.name, **where}
    return {"path": str(session.loaded.path), "float": True, **where}


def write_rung(session: Session, layer_map: LayerMap, path: Path) -> dict[str, Any]:
    written = write_checkpoint(session.model, layer_map, path, runtime=session.runtime, source=session.loaded.path)
    for note in written["notes"]:
        session.progress.note(note)
    return written


def _load_values(answer: Mapping[str, Any]) -> np.ndarray:
    with np.load(answer["values"]) as file:
        return file["values"]
