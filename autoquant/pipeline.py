"""All stages in order: profile → price → search → certify → report, each resumed from its file.

A run is a folder. A stage whose file is there and was made from the same model, data and settings is not run again.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoquant import artifacts
from autoquant.certification import certify_stage
from autoquant.certify.power import Power
from autoquant.checkpoint import read_layer_map, write_layer_map
from autoquant.finals import finals_stage
from autoquant.fresh import WRITTEN, fresh_processes
from autoquant.measured import PRICE, PROFILE, SMOOTHING, price_stage, profile_stage
from autoquant.power import power_stage
from autoquant.racing import expected_margin
from autoquant.report import render_html, validate
from autoquant.search import check_size, check_storage, options_of
from autoquant.searching import FRONT, MAP, search_stage, study_place
from autoquant.session import CHOICE, Session
from autoquant.summary import summarise, summarise_profile
from autoquant.tasks import SPLITS
from autoquant.values import Candidate, LayerMap, Price, Profile

CHECKPOINT, REPORT, PAGE = "checkpoint", "report.json", "report.html"
SETTINGS, PICKS = "settings.yaml", "picks"

BUSY = 0.15
"""`Price.unrest` from which on prices are not to be trusted."""


def run(session: Session) -> dict[str, Any]:
    """All stages, as `run_stages`; an interruption says where the run is and how to go on."""
    session.folder.mkdir(parents=True, exist_ok=True)
    session.progress.say(
        f"Run     {session.folder} (kill it at any moment; go on with: autoquant search --resume {session.folder})"
    )
    try:
        with fresh_processes(session):
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
    say("4/5 certify: saved checkpoints, reloaded in fresh processes, on data that the search never saw")
    with Timed(stages, "finals"):
        finals = finals_stage(session, profile, price, worth_certifying(session, found), half)
        found = finals.update(found)
    with Timed(stages, "certify"):
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
    for name in (SMOOTHING, PROFILE, PRICE, CHOICE):
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
    with fresh_processes(session):
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


class Timed:
    """Record the wall clock of a block in `stages`."""

    def __init__(self, stages: dict[str, float], name: str) -> None:
        self.stages, self.name = stages, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.stages[self.name] = time.perf_counter() - self.start
