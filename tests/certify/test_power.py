"""What data can settle, told beforehand, is what they settle."""

from __future__ import annotations

import numpy as np
import pytest

from autoquant.certify import betting_bounds
from autoquant.certify.power import items_for, reach
from autoquant.power import power_of, said, warned
from autoquant.values import Budget
from tests.certify.test_judge import ACCURACY, PERPLEXITY, Spread, Values

BUDGET = 0.02


def share_settled(n: int, changed: float, drop: float = 0.0) -> float:
    rng, worse = np.random.default_rng(9), (changed + drop) / 2
    draws = [rng.choice([1.0, 0.0, -1.0], n, p=[worse, 1 - changed, changed - worse]) for _ in range(60)]
    bounds = [betting_bounds(one, 1.0, 0.95, seed) for seed, one in enumerate(draws)]
    return float(np.mean([bound.upper <= BUDGET or bound.lower > BUDGET for bound in bounds]))


def test_what_is_said_to_be_settled_is() -> None:
    found = reach(1500, BUDGET, 1.0, 0.95)
    assert found is not None and 0.02 < found < 0.2
    assert share_settled(1500, found) >= 0.6
    assert share_settled(1500, 3 * found) < 0.6
    half = reach(1500, BUDGET, 1.0, 0.95, drop=BUDGET / 2)
    assert half is None or half < found


def test_the_items_that_are_said_to_be_needed_are() -> None:
    needed = items_for(0.05, BUDGET, 1.0, 0.95)
    assert needed is not None and 0.9 * 6.18 * 0.05 / BUDGET**2 < needed < 3 * 6.18 * 0.05 / BUDGET**2
    assert share_settled(needed, 0.05) >= 0.6
    assert share_settled(needed // 3, 0.05) < 0.6


def test_few_items_settle_nothing_even_if_nothing_changes() -> None:
    assert reach(20, 0.01, 1.0, 0.95) is None
    assert items_for(0.1, 1e-5, 1.0, 0.95) is None and items_for(0.1, 0.0, 1.0, 0.95) is None


def test_clusters_reach_less_far() -> None:
    alone, together = reach(3000, BUDGET, 1.0, 0.95), reach(3000, BUDGET, 1.0, 0.95, np.full(300, 10))
    assert alone is not None and (together is None or together < alone / 2)


def test_data_that_cannot_settle_the_budget_are_warned_of() -> None:
    few, many = (power_of(ACCURACY, (np.arange(n) % 5 > 0).astype(float), Budget(0.01)) for n in (60, 4000))
    assert few.enough is False and many.enough is True and warned(many) is None
    text = warned(few) or ""
    assert "60 certification items" in text and "INCONCLUSIVE" in text and f"about {few.needed['0.01']}" in text
    assert few.float_lower < 0.8 < few.float_upper and many.float_upper - many.float_lower < 0.04
    assert any("4000 items settle 0.01" in line for line in said(many))


def test_a_relative_budget_is_one_of_the_float_value() -> None:
    values = (np.arange(4000) % 4 == 0).astype(float)
    absolute, relative = (
        power_of(ACCURACY, values, Budget(drop, relative=one)) for drop, one in ((0.01, False), (0.04, True))
    )
    assert absolute.settles == relative.settles


@pytest.mark.parametrize("task", [Spread(), PERPLEXITY])
def test_nothing_is_claimed_of_metrics_that_are_no_mean(task: Values) -> None:
    found = power_of(task, np.linspace(1, 2, 200), Budget(0.01))
    assert found.enough is None and found.settles is None and warned(found) is None
    assert found.float_lower < found.float_value < found.float_upper
    assert "cannot be told beforehand" in said(found)[-1]


def test_without_confidence_and_with_a_budget_of_nothing() -> None:
    values = np.ones(100)
    assert "point estimate" in (warned(power_of(ACCURACY, values, Budget(0.01, confidence=None))) or "")
    assert "cannot be proved" in (warned(power_of(ACCURACY, values, Budget(0.0))) or "")
    assert power_of(ACCURACY, values, Budget(0.01)).float_lower is None, "nothing varies"
