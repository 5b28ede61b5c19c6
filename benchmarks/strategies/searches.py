"""What the readings share: which searches are run, and one of them on outcomes that are given."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from autoquant.search import STRATEGIES, Problem, open_study, run_search, warm_starts
from autoquant.search.refine import Measure
from autoquant.search.study import Evaluate
from autoquant.values import Candidate

CHECKPOINTS = (10, 20, 40)
"""Evaluations after which a search is looked at."""


def runs(wanted: Sequence[str] | None) -> list[tuple[str, bool]]:
    """(strategy, whether it starts cold); all strategies but the exhaustive one, if none is named."""
    names = [name for name in STRATEGIES if name != "exhaustive" and (not wanted or name in wanted)]
    return [(name, cold) for name in names for cold in (False, True)]


def label(strategy: str, cold: bool) -> str:
    return f"{strategy}-{'cold' if cold else 'warm'}"


def run(
    problem: Problem, evaluate: Evaluate, measure: Measure, strategy: str, cold: bool, seed: int, trials: int
) -> list[Candidate]:
    """The candidates of one search; its study is thrown away. The map to fall back on is of the surrogate's making."""
    with tempfile.TemporaryDirectory() as scratch:
        study = open_study(Path(scratch) / "journal", problem, strategy, seed)
        starts = () if cold else warm_starts(problem, strategy)
        own = strategy == "surrogate"
        return run_search(problem, evaluate, study, trials=trials, starts=starts, measure=measure, fallback=own)[0]
