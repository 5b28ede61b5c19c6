"""What is proposed next, given what was seen."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoquant.search import STRATEGIES, open_study, run_search
from autoquant.search.ledger import Exhausted, Seen, from_params, promise, space_of, to_params
from autoquant.search.problem import Choice, Problem
from autoquant.search.strategies.surrogate import allowances, propose, trust_region
from autoquant.search.surrogate import Region
from tests import synthetic
from tests.synthetic import Judge


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def seen(problem: Problem, base: str, choice: Choice, margin: float, divergence: float | None = None) -> Seen:
    score = problem.score(choice)
    return Seen(
        base, choice, promise(problem, base, choice), margin, score if divergence is None else divergence, score,
        ms=problem.total_ms(base, choice),
    )  # fmt: skip


def untried(problem: Problem, *trials: Seen) -> dict[str, list[Choice]]:
    return {base: [s.choice for s in trials if s.base == base] for base in problem.base_dtypes}


def test_parameters_name_a_map_and_back() -> None:
    problem = synthetic.make(3)
    problem = replace(problem, options=(problem.options[0], ("float",), problem.options[2]))
    params = to_params(problem, "bfloat16", (2, 0, 1))
    assert from_params(problem, params) == ("bfloat16", (2, 0, 1))
    assert params.keys() == space_of(problem).keys() == {"base_dtype", "layer0", "layer2"}


def allowed_next(problem: Problem, *trials: Seen) -> list[float]:
    return list(allowances(problem, trials, dict.fromkeys(problem.base_dtypes, 0.0)))


def test_everything_is_allowed_until_something_fails() -> None:
    problem = synthetic.make(3)
    assert allowed_next(problem) == [math.inf]
    assert allowed_next(problem, seen(problem, "float32", (3, 3, 3), -1)) == [math.inf]


def test_between_pass_and_fail_the_crossing_is_allowed_first_and_then_more() -> None:
    problem = synthetic.make(3)
    passed, failed = seen(problem, "float32", (1, 1, 1), -1), seen(problem, "float32", (3, 3, 3), 1)
    low, high = problem.score((1, 1, 1)), problem.score((3, 3, 3))
    found = allowed_next(problem, passed, failed)
    assert found[0] == pytest.approx(min((low + high) / 2, low * (high / low) ** 0.75)), "where the margin crosses 0"
    assert found == sorted(found) and low < found[0] and found[-1] < high < 1.001 * found[-1]


def test_when_nothing_passed_the_allowance_falls_steeply() -> None:
    problem = synthetic.make(3)
    (first, *_) = allowed_next(problem, seen(problem, "float32", (3, 3, 3), 1))
    assert first < 0.1 * problem.score((3, 3, 3))


def test_ends_that_have_met_allow_what_has_passed() -> None:
    problem = synthetic.make(3)
    scores = tuple(np.array([0, 1.0, 1.01, 1.02]) for _ in range(3))
    problem = replace(problem, scores=scores)
    found = allowed_next(problem, seen(problem, "float32", (1, 1, 1), -1), seen(problem, "float32", (3, 3, 3), 1))
    assert found == [pytest.approx(3.0)]


def test_a_lucky_pass_above_a_failure_does_not_end_the_search() -> None:
    problem = synthetic.make(3)
    trials = [
        seen(problem, "float32", (1, 1, 1), 1),
        seen(problem, "float32", (2, 1, 1), -1),
        seen(problem, "float32", (3, 3, 3), 1),
    ]
    base, choice = propose(problem, trials, untried(problem, *trials))
    assert choice not in [t.choice for t in trials if t.base == base]


def test_the_first_proposal_is_the_greatest_promise() -> None:
    problem = synthetic.make(3)
    base, choice = propose(problem, [], untried(problem))
    promises = [promise(problem, b, c) for b in problem.base_dtypes for c in itertools.product(range(4), repeat=3)]
    assert promise(problem, base, choice) >= 0.99 * max(promises)


def test_a_better_map_just_below_the_failure_is_still_found() -> None:
    """The middle between pass and fail is a gap without maps: the search must look higher before it gives up."""
    problem = synthetic.make(1, bases=("float32",))
    problem = replace(problem, scores=(np.array([0, 1.0, 9.0, 10.0]),))
    passed, failed = seen(problem, "float32", (1,), -1), seen(problem, "float32", (3,), 1)
    assert propose(problem, [passed, failed], untried(problem, passed, failed)) == ("float32", (2,))


def test_a_base_dtype_pays_for_what_it_adds_itself() -> None:
    problem = synthetic.make(3)
    big = problem.score((3, 3, 3))
    trials = [seen(problem, "float32", (0, 0, 0), -1, 0.0), seen(problem, "bfloat16", (0, 0, 0), 1, 2 * big)]
    base, _ = propose(problem, trials, untried(problem, *trials))
    assert base == "float32"


def test_a_base_dtype_that_does_not_hold_its_promise_is_left_for_one_that_does() -> None:
    problem = synthetic.make(4)
    slow = [
        replace(seen(problem, "bfloat16", (i, i, i, i), -1), saving=promise(problem, "bfloat16", (i,) * 4) / 3)
        for i in (1, 2)
    ]
    kept = seen(problem, "float32", (1, 1, 1, 1), -1)
    base, _ = propose(problem, [*slow, kept], untried(problem, *slow, kept))
    assert base == "float32"


def test_the_end_is_when_nothing_promises_more() -> None:
    problem = synthetic.make(2, bases=("float32",))
    best = replace(seen(problem, "float32", (3, 3), -1), saving=1e9)
    with pytest.raises(Exhausted):
        propose(problem, [best], untried(problem, best))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_planted_optimum_is_found_when_the_aggressive_side_fails(seed: int, share: float, tmp_path: Path) -> None:
    problem = synthetic.make(4, seed=seed)
    judged = Judge(problem, share * problem.score((3, 3, 3, 3)))
    found, _ = run_search(problem, judged, open_study(tmp_path / "journal", problem, "surrogate", 0), trials=30)
    best = max(c.saving for c in found if c.feasible)
    assert any(c.state == "complete" and not c.feasible for c in found)
    assert best >= 0.98 * judged.best()


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_is_found_when_profile_and_prices_are_wrong(seed: int, tmp_path: Path) -> None:
    problem = synthetic.make(4, seed=seed)
    theta = np.random.default_rng(seed).normal(0, 0.6, 4)
    judged = Judge(
        problem,
        0.15 * synthetic.scaled(problem, theta).score((3, 3, 3, 3)),
        theta,
        {"bfloat16": 1e-4},
        {"bfloat16": 1.15},
    )
    found, _ = run_search(problem, judged, open_study(tmp_path / "journal", problem, "surrogate", 0), trials=30)
    assert max(c.saving for c in found if c.feasible) >= 0.97 * judged.best()


def test_a_map_that_barely_failed_is_asked_for_again_with_a_little_less() -> None:
    problem = synthetic.make(3)
    passed = seen(problem, "float32", (1, 1, 1), -1)
    barely, badly = (seen(problem, "float32", (3, 3, 3), margin) for margin in (0.1, 10))
    assert allowed_next(problem, passed, barely)[0] > allowed_next(problem, passed, badly)[0]


def test_the_trust_region_comes_late_and_shrinks_with_failures() -> None:
    problem = synthetic.make(8)
    centre = seen(problem, "float32", (1,) * 8, -1)
    failed = [seen(problem, "float32", (3,) * number + (1,) * (8 - number), 1) for number in range(1, 7)]
    assert trust_region([centre, *failed[:4]]) is None
    regions = [trust_region([centre, *failed[: 5 + more]]) for more in (0, 1)]
    assert all(region is not None and region.centre == (1,) * 8 for region in regions)
    assert [region.radius for region in regions if region] == [1, 1]
    won = trust_region([*failed[:5], centre])
    assert won is not None and won.radius == 4, "after a success half of the groups may change"


def test_outside_the_trust_region_is_looked_at_when_nothing_in_it_is_worth_a_trial() -> None:
    problem = synthetic.make(4, bases=("float32",))
    centre = replace(seen(problem, "float32", (1, 0, 0, 0), -1))
    failed = [seen(problem, "float32", (3, 3, 3, 3), 1), *(seen(problem, "float32", (3, 3, 3, i), 1) for i in range(3))]
    again = [seen(problem, "float32", (3, 3, i, 3), 1) for i in range(3)]
    trials = [centre, *failed, *again]
    assert trust_region(trials) == Region((1, 0, 0, 0), 1)
    base, choice = propose(problem, trials, untried(problem, *trials))
    assert promise(problem, base, choice) > centre.saving


def capped(problem: Problem, share: float) -> Problem:
    """Bytes of float32 times `share` at most."""
    return replace(problem, max_bytes=share * problem.reference_bytes)


def test_under_a_cap_the_smallest_divergence_is_proposed() -> None:
    problem = capped(synthetic.make(4), 0.4)
    base, choice = propose(problem, [], untried(problem))
    under = [
        problem.score(c) for b in problem.base_dtypes for c in itertools.product(range(4), repeat=4)
        if problem.total_bytes(b, c) <= problem.max_bytes
    ]  # fmt: skip
    assert problem.total_bytes(base, choice) <= problem.max_bytes
    assert problem.score(choice) == pytest.approx(min(under))


def test_under_a_cap_of_latency_the_time_that_maps_really_take_counts() -> None:
    problem = synthetic.make(4, bases=("float32",))
    problem = replace(problem, max_ms=0.6 * problem.reference_ms)
    slow = seen(problem, "float32", (3, 3, 3, 3), -1)
    slow = replace(slow, ms=1.3 * problem.total_ms("float32", (3, 3, 3, 3)), over=1.0)
    _, choice = propose(problem, [slow], untried(problem, slow))
    assert 1.3 * problem.total_ms("float32", choice) <= problem.max_ms


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_search_under_a_cap_finds_the_smallest_drop_there_is(strategy: str, tmp_path: Path) -> None:
    problem = capped(synthetic.make(3), 0.35)
    judged = Judge(problem, 1.0)
    study = open_study(tmp_path / "journal", problem, strategy, 0)
    found, _ = run_search(problem, judged, study, trials=24)
    under = [c for c in found if c.state == "complete" and c.within_cap]
    assert under and all(c.bytes <= problem.max_bytes + 1 for c in under)
    least = min(
        judged.divergence(b, c) for b in problem.base_dtypes for c in itertools.product(range(4), repeat=3)
        if problem.total_bytes(b, c) <= problem.max_bytes
    )  # fmt: skip
    factor = 1.0 + 1e-9 if STRATEGIES[strategy].guided else 4.0  # who knows nothing of the profile finds something
    assert min(c.drop for c in under) <= factor * least
