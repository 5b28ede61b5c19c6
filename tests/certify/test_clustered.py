"""Items that are not independent: bounds on clusters hold where bounds on items would not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autoquant.certify import bets_needed, betting_bounds, bootstrap_bounds, judge
from autoquant.certify.bounds import cluster_members
from autoquant.certify.judge import drop_error, sample_error
from autoquant.values import Budget
from tests.certify.test_judge import ACCURACY, Spread, Values

ALPHA, TRIALS = 0.1, 250
SLACK = 3.3 * math.sqrt(ALPHA * (1 - ALPHA) / TRIALS)


def draw(rng: np.random.Generator, clusters: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Drops of clusters that change as a whole, 12% for the worse and 8% for the better, of sizes 1 to `largest`."""
    sizes = rng.integers(1, largest + 1, clusters)
    change = rng.choice([1.0, 0.0, -1.0], clusters, p=[0.12, 0.8, 0.08])
    return np.repeat(change, sizes), np.repeat(np.arange(clusters), sizes)


@pytest.mark.parametrize("largest", [2, 10])
def test_betting_on_clusters_holds_as_often_as_it_says(largest: int) -> None:
    rng, truth = np.random.default_rng(0), 0.04
    found = [betting_bounds(d, 1.0, 1 - ALPHA, clusters=c) for d, c in (draw(rng, 120, largest) for _ in range(TRIALS))]
    assert np.mean([bound.upper < truth for bound in found]) <= ALPHA + SLACK
    assert np.mean([bound.lower > truth for bound in found]) <= ALPHA + SLACK
    assert np.median([bound.upper for bound in found]) < 0.3


def test_betting_on_items_as_if_they_were_independent_does_not() -> None:
    """Or the test above would say nothing."""
    rng = np.random.default_rng(0)
    found = [betting_bounds(draw(rng, 120, 10)[0], 1.0, 1 - ALPHA) for _ in range(TRIALS)]
    assert np.mean([bound.upper < 0.04 for bound in found]) > ALPHA + SLACK


def test_a_cluster_of_one_item_each_is_no_cluster() -> None:
    drops = np.random.default_rng(1).choice([1.0, 0.0, -1.0], 300, p=[0.05, 0.9, 0.05])
    alone, each = betting_bounds(drops, 1.0, 0.95), betting_bounds(drops, 1.0, 0.95, clusters=np.arange(300))
    assert (alone.lower, alone.upper) == (each.lower, each.upper)
    assert "300 clusters" in each.method


def test_the_numbers_of_clusters_do_not_matter() -> None:
    drops, clusters = draw(np.random.default_rng(2), 80, 5)
    renamed = betting_bounds(drops, 1.0, 0.95, clusters=7 * clusters + 3)
    assert renamed == betting_bounds(drops, 1.0, 0.95, clusters=clusters)
    members = cluster_members(np.array([4, 9, 4, 9, 9]))
    assert [one.tolist() for one in members] == [[0, 2], [1, 3, 4]]


def test_the_bootstrap_draws_whole_clusters() -> None:
    rng, misses, alone = np.random.default_rng(3), 0, 0
    for _ in range(100):
        drops, clusters = draw(rng, 100, 10)

        def mean(index: np.ndarray, drops: np.ndarray = drops) -> float:
            return float(drops[index].mean())

        misses += bootstrap_bounds(mean, len(drops), 0.9, resamples=199, clusters=clusters).upper < 0.04
        alone += bootstrap_bounds(mean, len(drops), 0.9, resamples=199).upper < 0.04
    assert misses / 100 <= 0.1 + 0.03 + 3.3 * 0.03 < alone / 100 + 0.1
    assert alone > misses


def test_the_verdict_counts_clusters() -> None:
    drops, clusters = draw(np.random.default_rng(4), 400, 3)
    clustered = Values()
    clustered.clusters = lambda split: clusters  # type: ignore[method-assign]
    before = np.ones(len(drops))
    found = judge(clustered, "s", np.clip(before + drops, 0, 1), before - (drops > 0), Budget(0.01))
    assert found.clusters == 400 and "400 clusters" in found.method
    assert judge(ACCURACY, "s", before, before, Budget(0.01)).clusters is None


def test_the_standard_error_is_that_of_clusters() -> None:
    rng, budget = np.random.default_rng(5), Budget(0.01)
    errors, drops = {0: [], 1: []}, {0: [], 1: []}
    for _ in range(150):
        found, clusters = draw(rng, 100, 6)
        for place, task in enumerate((Values(), Spread())):
            task.clusters = lambda split, clusters=clusters: clusters  # type: ignore[method-assign,misc]
            before = 2 + found
            errors[place].append(drop_error(task, "s", before, np.full(len(found), 2.0), budget))
            drops[place].append(found.mean() if place == 0 else found.std())
    for place in (0, 1):
        assert np.mean(errors[place]) == pytest.approx(np.std(drops[place]), rel=0.25)


def test_the_standard_error_is_told_from_some_items_of_each_cluster() -> None:
    """A third of the items by chance: their error is that of as many items in whole clusters, not that of independent ones."""
    rng, budget = np.random.default_rng(7), Budget(0.01)
    change, clusters = rng.choice([1.0, 0.0, -1.0], 300, p=[0.12, 0.8, 0.08]), np.repeat(np.arange(300), 5)
    found = np.repeat(change, 5)
    before, after = 2 + found, np.full(len(found), 2.0)
    for task, tolerance in ((Values(), 0.05), (Spread(), 0.5)):
        task.clusters = lambda split: clusters  # type: ignore[method-assign,misc]
        whole = drop_error(task, "s", before, after, budget)
        share = 500 / len(found)
        told = [
            sample_error(task, "s", before, after, budget, rng.permutation(len(found))[:500]) * share**0.5
            for _ in range(30)
        ]
        assert np.sqrt(np.mean(np.square(told))) == pytest.approx(whole, rel=tolerance)
        everything = sample_error(task, "s", before, after, budget, rng.permutation(len(found)))
        assert everything == pytest.approx(whole, rel=0.2 if task.mean_of_items else 0.35)
        task.clusters = lambda split: None  # type: ignore[method-assign,misc]
        assert drop_error(task, "s", before, after, budget) < 0.6 * whole, "as if items were independent"


def test_items_that_never_change_prove_less_in_clusters() -> None:
    same, index = np.ones(400), np.arange(100)
    alone, together = Values(), Values()
    together.clusters = lambda split: np.repeat(np.arange(100), 4)  # type: ignore[method-assign]
    errors = [sample_error(task, "s", same, same, Budget(0.01), index) for task in (alone, together)]
    assert errors[0] == pytest.approx(1 / np.sqrt(101 * 100)) and errors[1] > 3 * errors[0]


def test_items_needed_are_more_where_they_come_in_clusters() -> None:
    drops, clusters = draw(np.random.default_rng(6), 60, 10)
    alone, together = (bets_needed(drops / 2, 1.0, 0.06, 0.95, clusters=own) for own in (None, clusters))
    assert alone is not None and together is not None and together > alone
