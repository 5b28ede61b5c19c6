"""Judging from the first items: early where it can be, and rarely against the whole split."""

from __future__ import annotations

import numpy as np
import pytest

from autoquant.search.race import ERROR, FIRST, LEAST, Order, decide


@pytest.mark.parametrize("total", [8, 31, 32, 33, 63, 64, 65, 100, 500, 872, 5000])
@pytest.mark.parametrize("fragile", [False, True])
def test_looks_grow_and_end_with_all_items(total: int, fragile: bool) -> None:
    order = Order.by_fragility(np.arange(total) % 7.0, 0) if fragile else Order.by_chance(total, 0)
    found = order.looks()
    assert found[-1] == total and found == sorted(set(found))
    assert found[0] >= min(FIRST, total)
    assert [item for part in order.chunks() for item in part] == order.items.tolist()
    assert sorted(order.items) == list(range(total))


def test_the_most_fragile_are_read_first_and_some_by_chance() -> None:
    fragility = np.random.default_rng(0).permutation(1000) / 1000
    order = Order.by_fragility(fragility, 3)
    first = order.places[order.items[:200]]
    assert (fragility[np.argsort(order.places)] == np.sort(fragility)[::-1]).all()
    assert (first < 200).mean() > 0.5 and (first > 500).sum() > 30, "so that a map that breaks everything is seen"
    again, other = Order.by_fragility(fragility, 3), Order.by_fragility(fragility, 4)
    assert (again.items == order.items).all() and (other.items != order.items).any()


def test_ties_are_broken_by_chance() -> None:
    places = Order.by_fragility(np.zeros(500), 0).places
    assert abs(np.corrcoef(places, np.arange(500))[0, 1]) < 0.2


@pytest.mark.parametrize("fragile", [False, True])
def test_weights_make_the_mean_of_some_that_of_all(fragile: bool) -> None:
    """Averaged over many orders; the value goes with fragility as a divergence does."""
    rng, total = np.random.default_rng(0), 400
    fragility = rng.exponential(size=total)
    value, means = fragility**2 + 0.1, []
    for seed in range(300):
        order = Order.by_fragility(fragility, seed) if fragile else Order.by_chance(total, seed)
        weights = order.weights(80)
        means.append(np.average(value[order.items[:80]], weights=weights))
    assert np.mean(means) == pytest.approx(value.mean(), rel=0.05)
    assert (order.weights(total) == 1).all()


def test_it_waits_and_then_knows() -> None:
    assert decide(0.5, 0.01, LEAST - 1, 100) is None, "too few items"
    assert decide(0.5, 0.01, 50, 100) is False
    assert decide(-0.5, 0.01, 50, 100) is True
    assert decide(0.005, 0.01, 50, 100) is None
    assert decide(0.005, 0.01, 99, 100) is False, "one item cannot change that"


@pytest.mark.parametrize(("margin", "within"), [(-1e-9, True), (0.0, True), (1e-9, False)])
def test_the_last_item_settles_it(margin: float, within: bool) -> None:
    assert decide(margin, 1.0, 100, 100) is within


@pytest.mark.parametrize("kind", ["flips", "normal"])
def test_few_answers_are_wrong_over_maps_on_both_sides_of_the_budget(kind: str) -> None:
    rng, wrong, read, count, total = np.random.default_rng(1), 0, 0, 1200, 800
    for _ in range(count):
        if kind == "flips":
            loss, gain = rng.uniform(0, 0.08), rng.uniform(0, 0.05)
            split = rng.choice([1.0, -1.0, 0.0], total, p=[loss, gain, 1 - loss - gain]) - 0.015
        else:
            split = rng.normal(rng.uniform(-0.2, 0.2), 1, total)
        within = bool(split.mean() <= 0)
        for n in Order.by_chance(total, 0).looks():
            part = split[:n]
            found = decide(part.mean(), part.std() / np.sqrt(n), n, total)
            if found is not None:
                break
        wrong += found != within
        read += n
    assert 0 < wrong / count <= ERROR, "and some are: else it reads more than it need"
    assert read / count < 0.75 * total
