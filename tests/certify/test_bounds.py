"""Bounds on a drop, by simulation: they may fail as often as they say and no more."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from autoquant.certify import Bound, bets_needed, betting_bounds, bootstrap_bounds, items_needed
from autoquant.certify.bounds import log_capital, predictable_bets
from autoquant.errors import NumericsError

ALPHA, TRIALS = 0.1, 300
SLACK = 3.3 * math.sqrt(ALPHA * (1 - ALPHA) / TRIALS)
"""Three standard errors of a share of `TRIALS`, and a little."""


def flips(rng: np.random.Generator, n: int, worse: float, better: float) -> np.ndarray:
    return rng.choice([1.0, 0.0, -1.0], n, p=[worse, 1 - worse - better, better])


@pytest.mark.parametrize("n", [20, 200])
@pytest.mark.parametrize(("worse", "better"), [(0.02, 0.0), (0.1, 0.05), (0.5, 0.5), (0.0, 0.3)])
def test_betting_bounds_hold_as_often_as_they_say(n: int, worse: float, better: float) -> None:
    rng, truth = np.random.default_rng(0), worse - better
    found = [betting_bounds(flips(rng, n, worse, better), 1.0, 1 - ALPHA, seed) for seed in range(TRIALS)]
    assert np.mean([bound.upper < truth for bound in found]) <= ALPHA + SLACK
    assert np.mean([bound.lower > truth for bound in found]) <= ALPHA + SLACK


def test_betting_bounds_hold_for_values_that_are_no_flips() -> None:
    rng = np.random.default_rng(1)
    draws = [2 * rng.beta(0.3, 3.0, 60) - 1 for _ in range(TRIALS)]
    truth = 2 * 0.3 / 3.3 - 1
    found = [betting_bounds(drops, 1.0, 1 - ALPHA, seed) for seed, drops in enumerate(draws)]
    assert np.mean([bound.upper < truth for bound in found]) <= ALPHA + SLACK
    assert np.mean([bound.lower > truth for bound in found]) <= ALPHA + SLACK


@pytest.mark.parametrize("chances", [(0.5, 0.0, 0.5), (0.02, 0.08, 0.9), (0.3, 0.6, 0.1), (0.0, 0.9, 0.1)])
@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_the_capital_is_a_fair_game_at_the_true_mean(chances: tuple[float, ...], alpha: float) -> None:
    """Its expectation over all sequences is 1 after every item; a bet that has seen its own item wins or loses by it."""
    values = np.array([0.0, 0.5, 1.0])
    truth = float(values @ chances)
    expected = np.zeros(6)
    for picked in itertools.product(range(3), repeat=6):
        unit = values[list(picked)]
        capital = np.exp(log_capital(unit, predictable_bets(unit, alpha), truth))
        expected += math.prod(chances[one] for one in picked) * capital
    np.testing.assert_allclose(expected, 1, atol=1e-9)


def test_a_bet_is_made_before_its_item_is_seen() -> None:
    unit = np.random.default_rng(0).uniform(size=50)
    bets = predictable_bets(unit, 0.05)
    for number in range(50):
        changed = unit.copy()
        changed[number:] = 1 - changed[number:]
        assert np.array_equal(predictable_bets(changed, 0.05)[: number + 1], bets[: number + 1])
    assert len(set(bets)) == 50, "or they learn nothing from what they have seen"


def test_betting_bounds_are_no_formality() -> None:
    """They exclude what is far off, and more data or less noise makes them narrower."""
    rng = np.random.default_rng(0)
    few, many = (betting_bounds(flips(rng, n, 0.05, 0.05), 1.0, 0.95) for n in (200, 5000))
    assert -0.03 < many.lower < many.upper < 0.03
    assert few.upper - few.lower > 2 * (many.upper - many.lower)
    quiet = betting_bounds(np.zeros(5000), 1.0, 0.95)
    assert 0 < quiet.upper < 0.002 and quiet.upper < many.upper


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_the_mean_lies_between_the_bounds_and_confidence_widens_them(confidence: float) -> None:
    drops = flips(np.random.default_rng(2), 400, 0.1, 0.02)
    found = betting_bounds(drops, 1.0, confidence)
    assert -1 <= found.lower < drops.mean() < found.upper <= 1
    assert betting_bounds(drops, 1.0, 0.6).upper < found.upper
    assert "any n" in found.method


def test_better_and_worse_mirror_each_other() -> None:
    drops = flips(np.random.default_rng(3), 300, 0.1, 0.02)
    one, two = betting_bounds(drops, 1.0, 0.95), betting_bounds(-drops, 1.0, 0.95)
    assert one.upper == pytest.approx(-two.lower) and one.lower == pytest.approx(-two.upper)


def test_bounds_scale_with_the_unit() -> None:
    drops = flips(np.random.default_rng(4), 300, 0.1, 0.02)
    assert betting_bounds(5 * drops, 5.0, 0.95).upper == pytest.approx(5 * betting_bounds(drops, 1.0, 0.95).upper)


@pytest.mark.parametrize("bad", [1.01, -1.01, math.nan, math.inf])
def test_values_outside_the_bounds_of_the_task_prove_nothing(bad: float) -> None:
    with pytest.raises(NumericsError, match="bounds"):
        betting_bounds(np.array([0.0, bad, 0.5]), 1.0, 0.95)


def test_the_same_seed_gives_the_same_bound() -> None:
    drops = flips(np.random.default_rng(5), 300, 0.1, 0.02)
    assert betting_bounds(drops, 1.0, 0.95, 7) == betting_bounds(drops, 1.0, 0.95, 7)


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_one_item_and_constant_items_give_bounds_in_range(value: float) -> None:
    for n in (1, 50):
        found = betting_bounds(np.full(n, value), 1.0, 0.95)
        assert -1 <= found.lower <= value <= found.upper <= 1


def bootstrap(values: np.ndarray, confidence: float = 0.9, seed: int = 0) -> Bound:
    return bootstrap_bounds(lambda index: float(values[index].mean()), len(values), confidence, seed, resamples=199)


def test_bootstrap_bounds_hold_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap(rng.exponential(1.0, 80) - 1, seed=seed) for seed in range(150)]
    slack = 0.03 + 3.3 * math.sqrt(0.09 / 150)  # they are asymptotic, and 80 skewed items are few
    assert np.mean([bound.upper < 0 for bound in found]) <= 0.1 + slack
    assert np.mean([bound.lower > 0 for bound in found]) <= 0.1 + slack
    assert np.mean([bound.upper < 0.0 for bound in found]) > 0, "or they are a formality"


def test_bootstrap_bounds_are_near_the_normal_ones_for_normal_data() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 1000)
    found = bootstrap_bounds(lambda index: float(values[index].mean()), 1000, 0.95, resamples=999)
    half = 1.645 * values.std() / math.sqrt(1000)
    assert found.upper == pytest.approx(values.mean() + half, abs=0.25 * half)
    assert found.lower == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert found.method.endswith("(asymptotic)")


def test_bootstrap_of_a_constant_is_that_constant() -> None:
    assert bootstrap(np.full(30, 0.2)).upper == pytest.approx(0.2)
    assert bootstrap(np.full(30, 0.2)).lower == pytest.approx(0.2)


def test_items_needed_settle_the_question_as_often_as_they_promise() -> None:
    drop, deviation, budget, confidence = 0.005, 0.2, 0.02, 0.95
    n = items_needed(drop, deviation, budget, confidence)
    assert n is not None
    draws = np.random.default_rng(0).normal(drop, deviation, (1000, n))
    upper = draws.mean(1) + 1.645 * draws.std(1) / math.sqrt(n)
    assert np.mean(upper <= budget) == pytest.approx(0.8, abs=0.05)


def test_items_needed_grow_with_noise_and_shrink_with_the_gap() -> None:
    base = items_needed(0.0, 0.1, 0.01, 0.95)
    assert base is not None and base > 1
    assert items_needed(0.0, 0.2, 0.01, 0.95) == pytest.approx(4 * base, rel=0.01)
    assert items_needed(0.0, 0.1, 0.02, 0.95) == pytest.approx(base / 4, rel=0.01)
    assert items_needed(0.02, 0.1, 0.01, 0.95) == base, "above the budget counts like below"
    assert items_needed(0.01, 0.1, 0.01, 0.95) is None and items_needed(0.0, 0.0, 0.01, 0.95) == 1


def test_the_items_that_betting_needs_are_more_than_it_had_and_settle_the_budget() -> None:
    drops, budget = np.zeros(95), 0.01
    drops[[3, 40]] = 0.2, -0.2
    assert betting_bounds(drops, 1.0, 0.95).upper > budget
    needed = bets_needed(drops, 1.0, budget, 0.95)
    assert needed is not None and needed > len(drops)
    many = np.random.default_rng(0).choice(drops, 2 * needed)
    assert betting_bounds(many, 1.0, 0.95).upper <= budget
