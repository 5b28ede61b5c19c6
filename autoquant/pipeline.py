"""The only file that knows every stage: profile → price → search → certify → report, each resumed from its file.

A run is a folder. A stage whose file is there and was made from the same model, data and settings is not run again.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autoquant import artifacts
from autoquant.certification import certify_stage
from autoquant.certify.power import Power
from autoquant.checkpoint import read_layer_map, write_layer_map
from autoquant.errors import UsageError
from autoquant.finals import finals_stage
from autoquant.fresh import WRITTEN
from autoquant.layer_maps import input_absmax, make_map
from autoquant.power import power_stage
from autoquant.price import measure_price
from autoquant.profile import measure_profile
from autoquant.racing import expected_margin
from autoquant.report import render_html, validate
from autoquant.search import (
    STUDY_NAME,
    Problem,
    Processes,
    alone,
    check_size,
    check_storage,
    describe_study,
    front,
    items_read,
    make_problem,
    open_study,
    options_of,
    run_search,
    storage_environment,
    warm_starts,
)
from autoquant.session import CHOICE, Session
from autoquant.summary import summarise, summarise_profile
from autoquant.tasks import SPLITS
from autoquant.trial import expected_minutes, make_judge
from autoquant.values import Candidate, LayerMap, Price, Profile

PROFILE, PRICE, STUDY, MAP = "profile.json", "price.json", "study.journal", "layer_map.yaml"
CHECKPOINT, REPORT, PAGE, SETTINGS = "checkpoint", "report.json", "report.html", "settings.yaml"
FRONT, PICKS = "front.json", "picks"

BUSY = 0.15
"""`Price.unrest` from which on prices are not to be trusted."""


def profile_stage(session: Session) -> Profile:
    """The profile, from `profile.json` if that was made from the same model, data and settings."""
    s = session.settings
    made_from = session.stage_fingerprint(
        "profile", sorted({n for names in session.allowed.values() for n in names}), s.seed, s.gradient
    )
    path = session.folder / PROFILE
    if (value := session.resume_from(path, made_from)) is not None:
        profile = Profile.from_dict(value)
        session.assembler.input_absmax.update(input_absmax(profile))
        return profile
    with session.progress.bar("profile", "batch") as update:
        profile = measure_profile(
            session.model, session.task, session.inventory, session.assembler, session.allowed,
            batch_size=min(16, s.eval_batch_size), seed=s.seed, gradient=s.gradient, progress=update,
        )  # fmt: skip
    profile = replace(profile, fingerprint=made_from)
    artifacts.write_json(path, profile.to_dict())
    return profile


def price_stage(session: Session) -> Price:
    """Bytes and milliseconds, from `price.json` if that was made on this hardware at this shape."""
    shape = (
        session.batch_size,
        session.seq_len,
        torch.get_num_threads(),
        session.runtime.description(),
        session.base_dtypes,
    )
    made_from = session.stage_fingerprint("price", session.allowed, shape)
    path = session.folder / PRICE
    if (value := session.resume_from(path, made_from)) is not None:
        return Price.from_dict(value)
    with session.progress.bar("price", "kernel") as update:
        price = measure_price(
            session.model, session.task, session.inventory, session.assembler, session.allowed, session.base_dtypes,
            batch_size=session.batch_size, seq_len=session.seq_len, progress=update,
        )  # fmt: skip
    choice = session.runtime_choice
    price = replace(price, fingerprint=made_from, runtime_choice=None if choice is None else choice.to_dict())
    artifacts.write_json(path, price.to_dict())
    return price


def search_stage(session: Session, profile: Profile, price: Price) -> tuple[list[Candidate], str]:
    """Search on the search split; each better map is written to `layer_map.yaml` at once, the front to `front.json`.

    Raises:
        UsageError: another process leads this run's search.
    """
    s = session.settings
    problem = problem_of(session, profile, price)
    with alone(session.folder):
        study = open_study(
            study_place(session), problem, s.strategy, s.seed, s.study or STUDY_NAME, search_fingerprint(problem)
        )
        describe_study(
            study, f"autoquant: {s.model}, {session.task_name}, budget {s.budget:g}, folder {session.folder}"
        )
        crew, judge = crew_of(session), None
        if crew is None:
            with session.progress.bar("float model on the search split", "row") as update:
                judge = make_judge(session, price, update)
            minutes = expected_minutes(session, judge)
            session.progress.say(f"  about {minutes:.0f} more minutes if all {s.trials} trials are needed")
        best: list[Candidate] = []

        with session.progress.bar("search", "map") as update:

            def on_trial(new: Candidate, found: list[Candidate]) -> None:
                update(len(found), s.trials)
                top = _best(found, problem)
                session.progress.say(f"  {describe(new, session)}")
                if top is not None and top not in best:
                    best.append(top)
                    write_layer_map(session.folder / MAP, make_map(session, top, profile))

            found, ended = run_search(
                problem, judge, study, trials=s.trials, starts=() if s.cold else warm_starts(problem, s.strategy),
                measure=judge.measure if judge else None, say=session.progress.note,
                max_seconds=s.max_minutes * 60 if s.max_minutes else math.inf, on_trial=on_trial, crew=crew,
            )  # fmt: skip
    session.search_items = sum(c.items for c in found) + items_read(study)
    artifacts.write_json(session.folder / FRONT, {"maps": [c.to_dict() for c in front(found)]})
    return found, ended


def study_place(session: Session) -> Path | str:
    """Where the study is kept: the storage that was asked for, or the run folder's journal."""
    return session.storage or session.settings.storage or session.folder / STUDY


def search_fingerprint(problem: Problem) -> str:
    return artifacts.fingerprint([problem.base_dtypes, problem.options, [group.name for group in problem.groups]])


def crew_of(session: Session) -> Processes | None:
    """The processes that evaluate maps, where it is not this one alone."""
    count = session.settings.workers
    if count == 1:
        return None
    threads = max(1, torch.get_num_threads() // count)
    session.progress.note(
        f"{count} workers judged maps at a time, on {threads} of {torch.get_num_threads()} threads each: latencies of the "
        "search were measured beside neighbours. What may be shipped was timed again, alone, on all threads."
    )
    command = [sys.executable, "-m", "autoquant", "worker", str(session.folder), "--threads", str(threads), "--as"]
    return Processes(count, command, storage_environment(study_place(session)), session.progress.note)


def problem_of(session: Session, profile: Profile, price: Price) -> Problem:
    """What is searched, under the caps of the settings.

    Raises:
        UsageError: no map is under the caps.
    """
    s = session.settings
    problem = make_problem(
        session.groups, session.allowed, profile, price, s.objective,
        max_ms=s.max_ms or math.inf, max_bytes=s.max_mb * 1e6 if s.max_mb else math.inf,
    )  # fmt: skip
    for name, cap, unit, least in (
        ("max-mb", problem.max_bytes / 1e6, "MB", problem.least(problem.base_bytes, problem.bytes) / 1e6),
        ("max-ms", problem.max_ms, "ms", problem.least(problem.base_ms, problem.ms)),
    ):
        if least > cap:
            raise UsageError(
                f"--{name} {cap:g}: no map of this search space is that small. The smallest has {least:.3g} {unit}."
            )
    return problem


def run(session: Session) -> dict[str, Any]:
    """All stages, as `run_stages`; an interruption says where the run is and how to go on."""
    session.folder.mkdir(parents=True, exist_ok=True)
    session.progress.say(
        f"Run     {session.folder} (kill it at any moment; go on with: autoquant search --resume {session.folder})"
    )
    try:
        return run_stages(session)
    except KeyboardInterrupt:
        found = session.folder / MAP
        best = f"The best map so far is in {found}, not certified yet. " if found.is_file() else ""
        session.progress.say(f"Interrupted. {best}Go on with: autoquant search --resume {session.folder}")
        raise


def run_stages(session: Session) -> dict[str, Any]:
    """All stages; returns the report (also in `report.json`). See `search` in `autoquant.api` for the folder's content."""
    say = session.progress.say
    stages: dict[str, float] = {}
    parameters = sum(p.numel() for p in session.model.parameters())
    say(f"Model   {session.loaded.source}: {type(session.model).__name__}, {parameters / 1e6:.1f}M parameters")
    splits = ", ".join(f"{session.task.items(split)} {split}" for split in SPLITS)
    say(f"Task    {session.task.name}, {session.task.metric}: {splits}")
    check_size(session.settings.strategy, session.base_dtypes, options_of(session.groups, session.allowed))
    check_storage(study_place(session))
    with Timed(stages, "power"):
        say("0/5 what the certification data can settle")
        power = power_stage(session)
    if (choice := session.runtime_choice) is not None:
        session.progress.note(choice.reason)
    with Timed(stages, "profile"):
        say("1/5 profile: how sensitive is each layer to each scheme")
        profile = profile_stage(session)
    with Timed(stages, "price"):
        say("2/5 price: bytes and milliseconds of each choice on this machine")
        price = price_stage(session)
    half = best_half(price)
    if price.unrest > BUSY:
        session.progress.note(
            f"This machine was busy while it was timed: the same kernel's time varied by ±{price.unrest:.0%} from call to "
            "call. What is said of speed is uncertain, and another map may be the fastest: search again on an idle machine."
        )
    for base, ms in price.served_ms.items():
        if base not in price.layer_ms:
            session.progress.note(
                f"{base} takes {ms / price.served_ms['float32']:.1f}× the time of float32 on this machine: not searched."
            )
    with Timed(stages, "search"):
        say("3/5 search: the best map under the budget, on the search split")
        found, ended = search_stage(session, profile, price)
    say(f"  {len(found)} maps; ended: {ended}")
    return finish(session, power, profile, price, found, stages, half, ended)


def finish(
    session: Session, power: Power, profile: Profile, price: Price, found: list[Candidate], stages: dict[str, float], half: str,
    ended: str,
) -> dict[str, Any]:  # fmt: skip
    """From what was found to the report: certify, ship, summarise."""
    say = session.progress.say
    with Timed(stages, "certify"):
        say("4/5 certify: saved checkpoints, reloaded in fresh processes, on data that the search never saw")
        finals = finals_stage(session, profile, price, worth_certifying(session, found), half)
        found = finals.update(found)
        certified = certify_stage(session, finals, half)
    shipped = replace(
        certified.shipped.layer_map,
        verdict={"run": certified.status, **certified.shipped.verdict.to_dict()},
    )
    shipped = replace(shipped, format=read_layer_map(certified.shipped.path).format)  # as it was written
    write_layer_map(session.folder / MAP, shipped)
    say("5/5 report")
    report = {**summarise(session, profile, price, found, certified, stages, half, ended), "power": power.to_dict()}
    ship(certified.shipped.path, session.folder / CHECKPOINT, shipped)
    shutil.rmtree(session.folder / WRITTEN, ignore_errors=True)
    artifacts.write_json(session.folder / REPORT, report)
    render(session.folder)
    return report


def worth_certifying(session: Session, found: list[Candidate]) -> list[Candidate]:
    """All that was found; under a cap the maps of the smallest drop under it, and those without quantization."""
    s = session.settings
    if s.max_mb is None and s.max_ms is None:
        return found
    under = [c for c in found if c.state == "complete" and c.within_cap and c.quantized]
    return [c for c in found if not c.quantized] + sorted(under, key=lambda c: c.drop)[: s.rungs]


def pick(session: Session, run: Path) -> dict[str, Any]:
    """Certify another point of a finished search's front, under the session's budget, without searching again.

    Profile and prices are copied from `run` into the session's folder, where the checkpoint and the report go.

    Raises:
        StaleError: the model or the data changed since.
    """
    for name in (PROFILE, PRICE, CHOICE):
        if (run / name).is_file():
            shutil.copy(run / name, session.folder / name)
    profile, price = profile_stage(session), price_stage(session)
    certification = session.task.items("certification")
    found = []
    for value in artifacts.read_json(run / FRONT)["maps"]:
        known = {name: value[name] for name in Candidate.__dataclass_fields__ if name in value}
        margin = expected_margin(known["drop"], known["error"], known["items"], certification, session.budget)
        found.append(Candidate(**{**known, "margin": margin}))
    session.search_items = 0
    say = session.progress.say
    say(f"Pick    of {len(found)} maps on the front of {run}, budget {session.budget.drop:g}")
    ended = f"picked from the front of {run.name}"
    return finish(session, power_stage(session), profile, price, found, {}, best_half(price), ended)


def ship(certified: Path, checkpoint: Path, layer_map: LayerMap) -> None:
    """The very folder that was measured becomes the checkpoint; its map then also tells the verdict."""
    write_layer_map(certified / MAP, layer_map)
    shutil.rmtree(checkpoint, ignore_errors=True)
    certified.rename(checkpoint)


def run_profile(session: Session) -> dict[str, Any]:
    """The profile stage alone, with its page."""
    session.folder.mkdir(parents=True, exist_ok=True)
    stages: dict[str, float] = {}
    with Timed(stages, "profile"):
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


def best_half(price: Price) -> str:
    """The faster of bfloat16 and float16 on this machine, measured on the whole model as it is served."""
    return min(("bfloat16", "float16"), key=lambda base: price.served_ms.get(base, math.inf))


def describe(candidate: Candidate, session: Session) -> str:
    if candidate.state != "complete":
        return f"#{candidate.number} {candidate.label}: {candidate.state} ({candidate.reason})"
    mark = "over the cap" if not candidate.within_cap else "fits" if candidate.feasible else "too far"
    mark += f", {candidate.items} items" if candidate.items < session.task.items("search") else ""
    return (
        f"#{candidate.number:<3} {candidate.saving:5.2f}× {candidate.ms:8.1f} ms {candidate.bytes / 1e6:8.1f} MB  "
        f"drop {candidate.drop:+.4f} ± {candidate.error:.4f}  {mark}  {candidate.label}"
    )


def _best(found: list[Candidate], problem: Problem) -> Candidate | None:
    fits = [c for c in found if (c.state == "complete" and c.within_cap if problem.capped else c.feasible)]
    return max(fits, key=lambda c: problem.value(c.saving, c.drop), default=None)


class Timed:
    """Record the wall clock of a block in `stages`."""

    def __init__(self, stages: dict[str, float], name: str) -> None:
        self.stages, self.name = stages, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.stages[self.name] = time.perf_counter() - self.start
