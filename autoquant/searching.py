"""The search stage: the study, who evaluates its maps, and what is kept of what it found."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

from autoquant import artifacts
from autoquant.checkpoint import write_layer_map
from autoquant.errors import UsageError
from autoquant.layer_maps import make_map
from autoquant.search import (
    STUDY_NAME,
    Problem,
    Processes,
    alone,
    describe_study,
    front,
    items_read,
    make_problem,
    open_study,
    run_search,
    storage_environment,
    warm_starts,
)
from autoquant.session import Session
from autoquant.trial import expected_minutes, make_judge
from autoquant.values import Candidate, Price, Profile

STUDY, FRONT, MAP = "study.journal", "front.json", "layer_map.yaml"


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
                fallback=s.rungs > 1 and not problem.capped,
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


def describe(candidate: Candidate, session: Session) -> str:
    if candidate.state != "complete":
        return f"#{candidate.number} {candidate.label}: {candidate.state} ({candidate.reason})"
    mark = "over the cap" if not candidate.within_cap else "fits" if candidate.feasible else "too far"
    if candidate.items < session.task.items("search"):
        mark += f", {candidate.items} items" if candidate.items else ", not read"
    return (
        f"#{candidate.number:<3} {candidate.saving:5.2f}× {candidate.ms:8.1f} ms {candidate.bytes / 1e6:8.1f} MB  "
        f"drop {candidate.drop:+.4f} ± {candidate.error:.4f}  {mark}  {candidate.label}"
    )


def _best(found: list[Candidate], problem: Problem) -> Candidate | None:
    fits = [c for c in found if (c.state == "complete" and c.within_cap if problem.capped else c.feasible)]
    return max(fits, key=lambda c: problem.value(c.saving, c.drop), default=None)
