"""The last trial of a search is a map to fall back on, safer than the best one and better than what else is safer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoquant.search import ladder, open_study, run_search
from autoquant.search.fallback import FALLBACK, fall_back
from autoquant.search.ladder import SAFER
from autoquant.search.ledger import Seen, promise
from autoquant.search.problem import Problem
from autoquant.values import Candidate
from tests import synthetic
from tests.synthetic import Judge

LIMIT = 0.03


def search(path: Path, judged: Judge, *, trials: int = 40, strategy: str = "surrogate", fallback: bool = True):
    study = open_study(path / "journal", judged.problem, strategy, 0)
    return run_search(judged.problem, judged, study, trials=trials, fallback=fallback)


def safer(found: list[Candidate]) -> list[Candidate]:
    return [c for c in found if c.origin == FALLBACK]


@pytest.mark.parametrize("trials", [9, 40], ids=["out of trials", "nothing promises more"])
@pytest.mark.parametrize(("strategy", "limit"), [("surrogate", LIMIT), ("random", 10 * LIMIT)])
def test_it_is_the_last_trial_and_becomes_the_first_rung(
    strategy: str, limit: float, trials: int, tmp_path: Path
) -> None:
    judged = Judge(synthetic.make(8, bases=("float32",)), limit)
    found, _ = search(tmp_path, judged, trials=trials, strategy=strategy)
    (one,) = safer(found)
    best = ladder(found)[-1]
    before = [c for c in found if c.state == "complete" and c is not one]
    assert one is [c for c in found if c.state == "complete"][-1] and len(before) < trials
    assert one.feasible and one.divergence < SAFER * best.divergence
    assert one.saving > max(c.saving for c in before if c.divergence < SAFER * best.divergence)
    assert ladder(found) == [one, best]


def test_it_is_proposed_once(tmp_path: Path) -> None:
    judged = Judge(synthetic.make(8, bases=("float32",)), LIMIT)
    first, _ = search(tmp_path, judged)
    again, _ = search(tmp_path, judged)
    assert len(safer(first)) == 1 and again == first


def test_nobody_asked(tmp_path: Path) -> None:
    judged = Judge(synthetic.make(8, bases=("float32",)), LIMIT)
    found, _ = search(tmp_path, judged, fallback=False)
    assert not safer(found)


def seen(problem, choice, margin: float) -> Seen:
    divergence = problem.score(choice)
    return Seen("float32", choice, promise(problem, "float32", choice), margin, divergence, divergence)


def test_without_a_quantized_map_within_the_budget_there_is_none() -> None:
    problem = synthetic.make(4, bases=("float32",))
    trials = [seen(problem, (0, 0, 0, 0), -1.0), seen(problem, (3, 3, 3, 3), 1.0)]
    assert fall_back(problem, trials, {"float32": [s.choice for s in trials]}) is None


def alike() -> Problem:
    """Four layers, the second scheme as cheap as the third, and an eighth as harmful."""
    problem = synthetic.make(4, bases=("float32",))
    ms = tuple(np.array([t[0], t[1], t[3], t[3]]) for t in problem.ms["float32"])
    size = tuple(np.array([b[0], b[1], b[3], b[3]]) for b in problem.bytes["float32"])
    scores = tuple(np.array([0.0, s[1], s[3] / 8, s[3]]) for s in problem.scores)
    return replace(problem, ms={"float32": ms}, bytes={"float32": size}, scores=scores)


def test_it_is_the_safest_of_what_is_as_fast() -> None:
    problem = alike()
    best = seen(problem, (3, 3, 3, 3), -1.0)
    assert fall_back(problem, [best], {"float32": [best.choice]}) == ("float32", (2, 2, 2, 2))


@pytest.mark.parametrize("margin", [-1.0, 1.0], ids=["within", "beyond"])
def test_nothing_as_fast_is_asked_for_that_is_hardly_safer_than_what_was_tried(margin: float) -> None:
    problem = alike()
    trials = [seen(problem, (3, 3, 3, 3), -1.0), seen(problem, (2, 2, 2, 3), margin)]
    nearly = replace(problem, scores=tuple(s * np.array([1, 1, 5.5, 1]) for s in problem.scores))
    close = [seen(nearly, s.choice, s.margin) for s in trials]
    found = fall_back(nearly, close, {"float32": [s.choice for s in close]})
    assert found is None or found[1] != (2, 2, 2, 2)


def test_nor_where_a_safer_map_saves_as_much() -> None:
    problem = synthetic.make(4, bases=("float32",))
    best = seen(problem, (3, 3, 3, 3), -1.0)
    first = fall_back(problem, [best], {"float32": [best.choice]})
    assert first is not None and problem.score(first[1]) < SAFER * best.divergence
    trials = [best, seen(problem, first[1], -1.0)]
    assert fall_back(problem, trials, {"float32": [s.choice for s in trials]}) is None
