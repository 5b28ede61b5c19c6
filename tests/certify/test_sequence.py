"""Judging items as they come: bounds that hold at all times at once, and an alarm that is false as seldom as it says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from autoquant.certify.sequence import EPOCH, KEPT, DropSequence
from autoquant.errors import NumericsError

ALPHA, TRIALS = 0.2, 100
SLACK = 3.3 * math.sqrt(ALPHA * (1 - ALPHA) / TRIALS)


def flips(rng: np.random.Generator, n: int, worse: float, better: float) -> np.ndarray:
    return rng.choice([1.0, 0.0, -1.0], n, p=[worse, 1 - worse - better, better])


def judged(drops: np.ndarray, budget: float = 0.01, confidence: float = 0.95, width: float = 1.0) -> DropSequence:
    found = DropSequence(budget, width, confidence)
    found.update(drops)
    return found


@pytest.mark.parametrize(("worse", "better"), [(0.06, 0.05), (0.5, 0.4), (0.02, 0.0)])
def test_no_alarm_is_raised_at_any_time_while_the_drop_is_the_budget(worse: float, better: float) -> None:
    """The hardest case that is still within it; a test that is repeated after each item would fire in most runs."""
    rng = np.random.default_rng(0)
    found = [judged(flips(rng, 600, worse, better), worse - better, 1 - ALPHA) for _ in range(TRIALS)]
    assert np.mean([one.alarm is not None for one in found]) <= ALPHA + SLACK


@pytest.mark.parametrize(("worse", "better"), [(0.06, 0.05), (0.4, 0.4)])
def test_the_bounds_hold_at_all_times_at_once(worse: float, better: float) -> None:
    """They only ever tighten, so that they hold at the end is that they held throughout."""
    rng, truth = np.random.default_rng(1), worse - better
    found = [judged(flips(rng, 500, worse, better), 0.01, 1 - ALPHA) for _ in range(TRIALS)]
    assert np.mean([one.upper < truth - 1e-9 for one in found]) <= ALPHA + SLACK
    assert np.mean([one.lower > truth + 1e-9 for one in found]) <= ALPHA + SLACK
    assert np.median([one.upper for one in found]) < truth + 0.2, "or they are a formality"


def test_bounds_tighten_and_enclose_the_mean() -> None:
    rng, found = np.random.default_rng(2), DropSequence(0.01, 1.0, 0.95)
    assert (found.lower, found.upper, found.status) == (-1.0, 1.0, "INCONCLUSIVE")
    before = (-1.0, 1.0)
    for _ in range(20):
        found.update(flips(rng, 100, 0.03, 0.02))
        assert before[0] <= found.lower <= found.upper <= before[1]
        before = found.lower, found.upper
    assert before[1] - before[0] < 0.1


def test_a_drop_beyond_the_budget_raises_the_alarm_and_names_the_item() -> None:
    found = judged(flips(np.random.default_rng(0), 5000, 0.08, 0.01))
    assert found.alarm is not None and 20 < found.alarm < 2000 and found.status == "FAIL"
    again = judged(flips(np.random.default_rng(0), 5000, 0.08, 0.01)[: found.alarm - 1])
    assert again.alarm is None, "the item before was not enough"


def test_a_model_that_turns_bad_late_is_noticed_soon() -> None:
    """A mean over all items would need as many bad items again as there were good ones."""
    rng = np.random.default_rng(3)
    found = judged(flips(rng, 40_000, 0.010, 0.009))
    assert found.alarm is None
    found.update(flips(rng, 4000, 0.06, 0.01))
    assert found.alarm is not None and found.alarm - 40_000 < 4000
    assert found.drop < 0.01, "the mean of all is still within the budget"
    assert len(found._starts) <= KEPT


def test_a_harmless_model_passes() -> None:
    found = judged(np.zeros(3000))
    assert found.status == "PASS" and found.upper <= 0.01 and found.flips == 0


@pytest.mark.parametrize("chunk", [1, 7, EPOCH, 1300])
def test_how_the_items_are_cut_into_chunks_makes_no_difference(chunk: int) -> None:
    drops = flips(np.random.default_rng(4), 1300, 0.05, 0.03)
    whole, parts = judged(drops), DropSequence(0.01, 1.0, 0.95)
    for place in range(0, len(drops), chunk):
        parts.update(drops[place : place + chunk])
    assert (parts.n, parts.flips, parts.alarm) == (whole.n, whole.flips, whole.alarm)
    for name in ("drop", "lower", "upper", "log_purse"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))


def test_it_goes_on_from_what_was_saved() -> None:
    drops = flips(np.random.default_rng(5), 2000, 0.05, 0.03)
    whole, first = judged(drops), judged(drops[:777])
    restored = DropSequence.from_dict(json.loads(json.dumps(first.to_dict())))
    restored.update(drops[777:])
    assert (restored.lower, restored.upper) == pytest.approx((whole.lower, whole.upper))
    assert (restored.alarm, restored.n) == (whole.alarm, whole.n)
    assert restored.log_purse == pytest.approx(whole.log_purse)


def test_drops_are_in_the_unit_of_the_values() -> None:
    drops = flips(np.random.default_rng(6), 500, 0.1, 0.02)
    one, five = judged(drops, 0.02), judged(5 * drops, 0.1, width=5.0)
    assert five.drop == pytest.approx(5 * one.drop)
    assert five.upper == pytest.approx(5 * one.upper) and five.alarm == one.alarm


@pytest.mark.parametrize("bad", [1.5, math.nan])
def test_a_value_outside_its_bounds_is_an_error(bad: float) -> None:
    with pytest.raises(NumericsError, match="bounds"):
        judged(np.array([0.0, bad]))
