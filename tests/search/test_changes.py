"""What the items that were not read may still change."""

from __future__ import annotations

import numpy as np
import pytest

from autoquant.search.changes import left
from autoquant.search.race import ERROR, LEAST, Order, known

BOUNDS = (0.0, 1.0)
TOTAL = 600


def population(rng: np.random.Generator, depth: float, even: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(fragility, right or wrong before, drops): answers flip with a rate that falls along the order."""
    place = rng.permutation(TOTAL) / TOTAL
    before = (rng.random(TOTAL) < 0.55 + 0.4 * place).astype(float)
    flips = rng.random(TOTAL) < np.clip(0.5 * np.exp(-place / depth) + even, 0, 1)
    return -place, before, np.where(flips, 2 * before - 1, 0.0)


def test_with_all_items_read_nothing_is_left_to_guess() -> None:
    fragility, before, drops = population(np.random.default_rng(0), 0.05)
    order = Order.by_fragility(fragility, 0)
    found = left(order.places, before, order.items, drops[order.items], BOUNDS, 0.1)
    assert found.drop == pytest.approx(drops.mean()) and found.deviation == pytest.approx(drops.std())
    assert found.error == 0


@pytest.mark.parametrize("depth", [0.01, 0.05, 0.15])
def test_the_posterior_is_about_right(depth: float) -> None:
    rng, errors, unlikely = np.random.default_rng(1), [], 0
    for seed in range(60):
        fragility, before, drops = population(rng, depth)
        order = Order.by_fragility(fragility, seed)
        read = order.items[:120]
        found = left(order.places, before, read, drops[read], BOUNDS)
        errors.append(found.drop - drops.mean())
        unlikely += abs(errors[-1]) > 2.5 * found.error
    assert abs(np.mean(errors)) < 0.006 and unlikely <= 3


def test_a_map_that_breaks_everything_is_seen_by_the_items_read_by_chance() -> None:
    fragility, before, drops = population(np.random.default_rng(2), 0.05, even=0.4)
    order = Order.by_fragility(fragility, 0)
    read = order.items[: order.looks()[1]]
    found = left(order.places, before, read, drops[read], BOUNDS)
    assert found.drop == pytest.approx(drops.mean(), abs=4 * found.error) and found.drop > 0.15
    assert known(found.drop - 0.01, found.error, len(read), TOTAL) is False


def test_without_a_change_the_answer_is_soon_known_and_never_certain() -> None:
    order = Order.by_fragility(np.arange(TOTAL, dtype=float), 0)
    errors = [
        left(order.places, np.ones(TOTAL), order.items[:n], np.zeros(n), BOUNDS).error for n in order.looks()[:-1]
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0 and errors[3] < 0.003


def test_places_without_an_item_read_and_ties_do_no_harm() -> None:
    """Empty strata: only the most fragile were read. Ties: all items are alike."""
    order = Order.by_fragility(np.zeros(TOTAL), 0)
    front = np.argsort(order.places)[:40]
    found = left(order.places, np.ones(TOTAL), front, np.zeros(40), BOUNDS, 0.1)
    assert 0 <= found.drop < 0.05 and 0 < found.error < 0.2 and np.isfinite(found.deviation)


def test_what_was_not_read_is_not_looked_at() -> None:
    fragility, before, drops = population(np.random.default_rng(4), 0.1)
    order = Order.by_fragility(fragility, 0)
    read = order.items[:150]
    one = left(order.places, before, read, drops[read], BOUNDS, 0.1)
    two = left(order.places, before, read[::-1], drops[read][::-1], BOUNDS, 0.1)
    assert one.drop == pytest.approx(two.drop) and one.error == pytest.approx(two.error)


def test_values_of_another_range_and_direction_give_the_same_figures_in_their_unit() -> None:
    fragility, before, drops = population(np.random.default_rng(5), 0.1)
    order = Order.by_fragility(fragility, 0)
    read = order.items[:150]
    one = left(order.places, before, read, drops[read], BOUNDS, 0.1)
    two = left(order.places, 100 * before - 100, read, 100 * drops[read], (-100.0, 0.0), 0.1)
    assert two.drop == pytest.approx(100 * one.drop) and two.error == pytest.approx(100 * one.error)


def test_few_answers_are_wrong_over_maps_on_both_sides_of_the_budget() -> None:
    rng, wrong, read, count, budget = np.random.default_rng(6), 0, 0, 300, 0.01
    for seed in range(count):
        fragility, before, drops = population(rng, rng.choice([0.01, 0.03, 0.1]), rng.choice([0.0, 0.0, 0.0, 0.02]))
        order = Order.by_fragility(fragility, seed)
        within = bool(drops.mean() + 0.05 * drops.std() <= budget)
        for n in order.looks():
            part = order.items[:n]
            found = left(order.places, before, part, drops[part], BOUNDS, 0.05)
            answer = known(found.drop + 0.05 * found.deviation - budget, found.error, n, TOTAL)
            if answer is not None:
                break
        assert n >= LEAST
        wrong += answer != within
        read += n
    assert wrong / count <= 1.5 * ERROR
    assert read / count < 0.4 * TOTAL
