"""The only file that knows every stage: profile → price → search → certify → report, each resumed from its file.

A run is a folder. A stage whose file is there and was made from the same model, data and settings is not run again.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from autoquant import artifacts
from autoquant.certify.judge import drop_error, judge, paired_drop
from autoquant.certify.worker import run_job
from autoquant.checkpoint import format_for, load, write_checkpoint, write_layer_map
from autoquant.errors import StaleError
from autoquant.evaluation import Evaluation, evaluate_split, forward_call, time_models
from autoquant.price import measure_price
from autoquant.profile import measure_profile
from autoquant.profile.fisher import divergence
from autoquant.report import render_html, validate
from autoquant.search import Outcome, Problem, ladder, make_problem, open_study, run_search
from autoquant.session import Session, now
from autoquant.summary import summarise, summarise_profile
from autoquant.values import Candidate, LayerMap, Price, Profile, Verdict

PROFILE, PRICE, STUDY, MAP, CERTIFY = (
    "profile.json",
    "price.json",
    "study.journal",
    "layer_map.yaml",
    "certification.json",
)
CHECKPOINT, REPORT, PAGE, SETTINGS = "checkpoint", "report.json", "report.html", "settings.yaml"
FRESH = "measurements"
KEPT_OUTPUTS = 512 * 2**20
"""Bytes of float outputs kept to measure the divergence of each trial; batches beyond are judged by the metric alone."""


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


def profile_stage(session: Session) -> Profile:
    """The profile, from `profile.json` if that was made from the same model, data and settings."""
    s = session.settings
    print_made = session.stage_fingerprint(
        "profile", sorted({n for names in session.allowed.values() for n in names}), s.seed, s.gradient
    )
    path = session.folder / PROFILE
    if (value := _resume(path, print_made, session)) is not None:
        profile = Profile.from_dict(value)
        session.assembler.input_absmax.update(_ranges(profile))
        return profile
    with session.progress.bar("profile", "batch") as update:
        profile = measure_profile(
            session.model, session.task, session.inventory, session.assembler, session.allowed,
            batch_size=min(16, s.eval_batch_size), seed=s.seed, gradient=s.gradient, progress=update,
        )  # fmt: skip
    profile = replace(profile, fingerprint=print_made)
    artifacts.write_json(path, profile.to_dict())
    return profile


def price_stage(session: Session) -> Price:
    """Bytes and milliseconds, from `price.json` if that was made on this hardware at this shape."""
    s = session.settings
    shape = (
        s.batch_size,
        session.seq_len,
        torch.get_num_threads(),
        session.runtime.description(),
        session.space.base_dtypes,
    )
    print_made = session.stage_fingerprint("price", session.allowed, shape)
    path = session.folder / PRICE
    if (value := _resume(path, print_made, session)) is not None:
        return Price.from_dict(value)
    bases = tuple(dict.fromkeys(("float32", *session.space.base_dtypes)))
    with session.progress.bar("price", "kernel") as update:
        price = measure_price(
            session.model, session.task, session.inventory, session.assembler, session.allowed, bases,
            batch_size=s.batch_size, seq_len=session.seq_len, progress=update,
        )  # fmt: skip
    price = replace(price, fingerprint=print_made)
    artifacts.write_json(path, price.to_dict())
    return price


def search_stage(session: Session, profile: Profile, price: Price) -> tuple[list[Candidate], str]:
    """Search on the search split; each better map is written to `layer_map.yaml` at once."""
    s = session.settings
    problem = make_problem(session.groups, session.allowed, profile, price, s.objective)
    with session.progress.bar("float model on the search split", "row") as update:
        evaluate = make_evaluate(session, price, update)
    study = open_study(session.folder / STUDY, problem, s.strategy, s.seed)
    best: list[Candidate] = []

    with session.progress.bar("search", "map") as update:

        def on_trial(found: list[Candidate]) -> None:
            update(len(found), s.trials)
            last, top = found[-1], _best(found)
            session.progress.say(f"  {describe(last, session)}")
            if top is not None and top not in best:
                best.append(top)
                write_layer_map(session.folder / MAP, make_map(session, top, profile))

        return run_search(
            problem, evaluate, study, trials=s.trials,
            max_seconds=s.max_minutes * 60 if s.max_minutes else math.inf, on_trial=on_trial,
        )  # fmt: skip


def make_evaluate(
    session: Session, price: Price, update: Callable[[int, int], None]
) -> Callable[[str, dict[str, str]], Outcome]:
    """The function that judges a map on the search split: paired drop, divergence, and latency end to end."""
    s, task, budget = session.settings, session.task, session.budget
    outputs: dict[int, torch.Tensor] = {}
    room = KEPT_OUTPUTS

    def keep(number: int, output: torch.Tensor, batch: Any) -> None:
        nonlocal room
        size = output.numel() * output.element_size()
        if room >= size or not outputs:
            outputs[number], room = output, room - size

    base: Evaluation = evaluate_split(
        session.model,
        task,
        "search",
        batch_size=s.eval_batch_size,
        observe=keep,
        progress=update,
        notify=session.progress.note,
    )
    if task.name == "fidelity":  # the float model is its own reference
        base = replace(base, values=task.score("search", base.reduced, base.reduced))
    certification = task.items("certification")
    minutes = base.seconds * (0.6 * s.trials + 2.5 * task.rows("certification") / task.rows("search")) / 60 + 1
    session.progress.say(f"  about {minutes:.0f} more minutes if all {s.trials} trials are needed")
    normal = stats.norm.ppf(budget.confidence) if budget.confidence else 0.0
    example = task.example(s.batch_size, session.seq_len)
    anchor = forward_call(session.model, task, example)

    def evaluate(base_dtype: str, layers: dict[str, str]) -> Outcome:
        model = session.assembler.assemble(layers, base_dtype)
        sums = [0.0, 0]

        def compare(number: int, output: torch.Tensor, batch: Any) -> None:
            if number in outputs and outputs[number].shape == output.shape:
                found = divergence(output, outputs[number], task.output_kind)
                mask = task.mask(batch) if task.positions else None
                found = found if mask is None else found[mask]
                sums[0] += found.sum().item()
                sums[1] += found.numel()

        result = evaluate_split(
            model,
            task,
            "search",
            batch_size=base.batch_size,
            reference=base.reduced,
            observe=compare,
            notify=session.progress.note,
        )
        drop = paired_drop(task, "search", base.values, result.values, budget)
        error = drop_error(task, "search", base.values, result.values, budget)
        expected = error * math.sqrt(len(result.values) / max(1, certification))
        times = time_models(
            {"map": forward_call(model, task, example), "anchor": anchor}, rounds=7, warmup=1, max_seconds=3.0
        )
        return Outcome(
            drop=drop,
            error=error,
            margin=drop + normal * expected - budget.drop,
            divergence=sums[0] / max(1, sums[1]),
            ms=times["map"][0] / times["anchor"][0] * price.model_ms["float32"],
            items=len(result.values),
        )

    return evaluate


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
    rungs: list[Rung] = []
    for number, (label, layer_map) in enumerate(maps):
        path = session.folder / "candidates" / f"{number}"
        if not path.is_dir():
            _write(session, layer_map, path)
        stopped = bool(rungs) and rungs[-1].verdict is not None and rungs[-1].verdict.status != "PASS"
        if stopped and not is_half(layer_map, half):
            continue
        answer = measure(session, f"map-{number}", path)
        verdict = None  # after a rung that did not pass, half precision is measured to be shipped, not judged
        if not stopped:
            verdict = judge(
                session.task,
                "certification",
                expected,
                _load_values(answer),
                session.budget,
                seed=session.settings.seed,
            )
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
        value := _resume(folder / f"{name}.json", made_from, session)
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
    import copy

    model = session.model if path is None else load(path, model=copy.deepcopy(session.model), runtime=session.runtime)
    reference = None if path is None else torch.from_numpy(np.load(folder / "float32.npz")["reduced"])
    found = evaluate_split(
        model, session.task, "certification", batch_size=session.settings.eval_batch_size, reference=reference
    )
    with artifacts.atomic(folder / f"{name}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, values=found.values, reduced=found.reduced.numpy())
    return {
        "metric": found.metric,
        "items": len(found.values),
        "values": str(folder / f"{name}.npz"),
        "peak_memory_bytes": None,
    }


def _latencies(session: Session, paths: Mapping[str, Path | None]) -> dict[str, Any]:
    """End-to-end ms of the checkpoints, in turns in one fresh process."""
    if session.module is not None:
        import copy

        example = session.task.example(session.settings.batch_size, session.seq_len)
        models = {
            name: session.model
            if path is None
            else load(path, model=copy.deepcopy(session.model), runtime=session.runtime)
            for name, path in paths.items()
        }
        found = time_models(
            {name: forward_call(model, session.task, example) for name, model in models.items()}, rounds=25
        )
        return {"ms": {n: ms for n, (ms, _) in found.items()}, "noise": {n: noise for n, (_, noise) in found.items()}}
    session.progress.say("  timing float32, half and quantized side by side in a fresh process …")
    job = {**_common_job(session), "kind": "latency", "rounds": 25, "max_seconds": 20.0,
           "models": {name: _model_item(session, path) for name, path in paths.items()}}  # fmt: skip
    return run_job(job, session.folder / FRESH, "latency")


def _common_job(session: Session) -> dict[str, Any]:
    s = session.settings
    return {
        "task": session.task.spec(),  # type: ignore[attr-defined]
        "processor": str(session.loaded.path),
        "trust_remote_code": s.trust_remote_code,
        "shape": {"batch_size": s.batch_size, "seq_len": session.seq_len},
        "threads": torch.get_num_threads(),
        "quiet": session.progress.quiet,
    }


def _model_item(session: Session, path: Path | None) -> dict[str, Any]:
    """How the fresh process opens a model: a checkpoint folder, or the float model with its transformers class."""
    trust = session.settings.trust_remote_code
    if path is not None:
        return {"path": str(path.resolve()), "trust_remote_code": trust, "device": session.settings.device}
    return {"path": str(session.loaded.path), "float": True, "trust_remote_code": trust}


def _write(session: Session, layer_map: LayerMap, path: Path) -> dict[str, Any]:
    written = write_checkpoint(session.model, layer_map, path, runtime=session.runtime, source=session.loaded.path)
    for note in written["notes"]:
        session.progress.note(note)
    return written


def make_map(session: Session, candidate: Candidate, profile: Profile) -> LayerMap:
    """The layer map of a candidate, with what it was found on."""
    task = session.task.describe()
    static = {name for name, scheme in candidate.layers.items() if scheme.endswith("/a8-static")}
    return LayerMap(
        layers=dict(candidate.layers),
        base_dtype=candidate.base_dtype,
        groups=tuple(tuple(layer.name for layer in group.layers) for group in session.groups if len(group.layers) > 1),
        input_absmax={name: value for name, value in _ranges(profile).items() if name in static},
        format=format_for(session.inventory.layers, candidate.layers, candidate.base_dtype, model=session.model),
        model={
            "name": session.loaded.source,
            "class": type(session.model).__name__,
            "fingerprint": session.model_fingerprint,
            "architecture": session.architecture_fingerprint,
        },
        found_on={
            "task": task,
            "hardware": session.runtime.description(),
            "runtime": session.runtime.name,
            "threads": torch.get_num_threads(),
            "shape": {"batch_size": session.settings.batch_size, "seq_len": session.seq_len},
            "budget": {
                "drop": session.budget.drop,
                "relative": session.budget.relative,
                "confidence": session.budget.confidence,
            },
            "objective": session.settings.objective,
            "space": session.space.name,
            "seed": session.settings.seed,
            "date": now(),
        },
    )


def run(session: Session) -> dict[str, Any]:
    """All stages; returns the report (also in `report.json`). See `search` in `autoquant.api` for the folder's content."""
    say = session.progress.say
    stages: dict[str, float] = {}
    session.folder.mkdir(parents=True, exist_ok=True)
    say(
        f"Model   {session.loaded.source}: {type(session.model).__name__}, {sum(p.numel() for p in session.model.parameters()) / 1e6:.1f}M parameters"
    )
    say(
        f"Task    {session.task.name}, {session.task.metric}: "
        + ", ".join(f"{session.task.items(x)} {x}" for x in ("calibration", "search", "certification"))
    )
    announce_power(session)
    with _timed(stages, "profile"):
        say("1/5 profile: how sensitive is each layer to each scheme")
        profile = profile_stage(session)
    with _timed(stages, "price"):
        say("2/5 price: bytes and milliseconds of each choice on this machine")
        price = price_stage(session)
    half = best_half(price)
    for base, ms in price.model_ms.items():
        if base not in price.layer_ms:
            session.progress.note(
                f"{base} takes {ms / price.model_ms['float32']:.1f}× the time of float32 on this machine: not searched."
            )
    with _timed(stages, "search"):
        say("3/5 search: the best map under the budget, on the search split")
        found, ended = search_stage(session, profile, price)
    say(f"  {len(found)} maps; ended: {ended}")
    with _timed(stages, "certify"):
        say("4/5 certify: saved checkpoints, reloaded in fresh processes, on data that the search never saw")
        certified = certify_stage(session, profile, found, half)
    shipped = replace(
        certified.shipped.layer_map,
        model=certified.judged.layer_map.model,
        found_on=certified.judged.layer_map.found_on,
        verdict={
            "run": certified.status,
            **(certified.shipped.verdict.to_dict() if certified.shipped.verdict else {"status": "UNTESTED"}),
        },
    )
    _write(session, shipped, session.folder / CHECKPOINT)
    write_layer_map(session.folder / MAP, shipped)
    say("5/5 report")
    report = summarise(session, profile, price, found, certified, stages, half, ended)
    shutil.rmtree(session.folder / "candidates", ignore_errors=True)
    artifacts.write_json(session.folder / REPORT, report)
    render(session.folder)
    return report


def run_profile(session: Session) -> dict[str, Any]:
    """The profile stage alone, with its page."""
    session.folder.mkdir(parents=True, exist_ok=True)
    stages: dict[str, float] = {}
    with _timed(stages, "profile"):
        profile = profile_stage(session)
    report = summarise_profile(session, profile, stages)
    artifacts.write_json(session.folder / REPORT, report)
    render(session.folder)
    return report


def render(folder: Path) -> Path:
    """`report.html` from `report.json`."""
    report = artifacts.read_json(folder / REPORT)
    validate(report)
    artifacts.write_text(folder / PAGE, render_html(report))
    return folder / PAGE


def announce_power(session: Session) -> None:
    """Before the search: can the certification data settle this budget at all?"""
    budget, n = session.budget, session.task.items("certification")
    if budget.confidence is None:
        session.progress.note("The budget is judged on the point estimate, without confidence (--confidence none).")
    elif budget.drop == 0:
        session.progress.note(
            "A budget of 0 cannot be proved from data: expect INCONCLUSIVE. Allow at least a small drop."
        )
    elif session.task.mean_of_items and session.task.bounds is not None and not session.task.relative:
        share = n * budget.drop**2 / 6.18  # n = 6.18 f / budget²: z at 95% and 80% power, squared
        session.progress.say(
            f"Power   {n} items settle a budget of {budget.drop:g} if up to {min(1, share):.0%} of them change by 1 (at 80% power)"
        )
        if share < 0.05:
            needed = math.ceil(6.18 * 0.1 / budget.drop**2)
            session.progress.note(
                f"{n} certification items are few for a budget of {budget.drop:g}: about {needed} would settle it if 10% change."
            )


def best_half(price: Price) -> str:
    """The faster of bfloat16 and float16 on this machine, measured on the whole model."""
    return min(("bfloat16", "float16"), key=lambda base: price.model_ms.get(base, math.inf))


def describe(candidate: Candidate, session: Session) -> str:
    if candidate.state != "complete":
        return f"#{candidate.number} {candidate.label}: {candidate.state} ({candidate.reason})"
    mark = "fits" if candidate.feasible else "too far"
    return (
        f"#{candidate.number:<3} {candidate.saving:5.2f}× {candidate.ms:8.1f} ms {candidate.bytes / 1e6:8.1f} MB  "
        f"drop {candidate.drop:+.4f} ± {candidate.error:.4f}  {mark}  {candidate.label}"
    )


def _best(found: list[Candidate]) -> Candidate | None:
    return max((c for c in found if c.feasible), key=lambda c: c.saving, default=None)


def _ranges(profile: Profile) -> dict[str, float]:
    return {name: stat.input_absmax for name, stat in profile.stats.items() if stat.input_absmax is not None}


def _load_values(answer: Mapping[str, Any]) -> np.ndarray:
    with np.load(answer["values"]) as file:
        return file["values"]


def _resume(path: Path, made_from: str, session: Session) -> dict[str, Any] | None:
    """The content of a stage's file; None if it is not there.

    Raises:
        StaleError: it was made from another model, other data or other settings.
    """
    if not path.is_file():
        return None
    value = artifacts.read_json(path)
    if value.get("fingerprint") != made_from:
        raise StaleError(
            f"{path} was made from another model, other data or other settings than these. "
            "Choose another --out folder, or delete the file to have it made again."
        )
    session.progress.say(f"  {path.name}: taken from the run folder")
    return value


class _timed:
    """Record the wall clock of a block in `stages`."""

    def __init__(self, stages: dict[str, float], name: str) -> None:
        self.stages, self.name = stages, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.stages[self.name] = time.perf_counter() - self.start
