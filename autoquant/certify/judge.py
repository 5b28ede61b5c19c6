"""The paired drop of a task's metric, and the verdict on it."""

from __future__ import annotations

import math

import numpy as np

from autoquant.certify.bounds import Bound, bets_needed, betting_bounds, bootstrap_bounds, items_needed
from autoquant.tasks.base import Task
from autoquant.values import Budget, Verdict

ROUNDING = 1e-12
"""1 - 0.99 is a little more than 0.01 in floats; a drop of 0.01 is within a budget of 0.01 all the same."""


def excess(drop: float, budget: Budget) -> float:
    """How far a drop, or a bound on it, is beyond the budget; 0 or less is within it."""
    return drop - (budget.drop + ROUNDING)


def paired_drop(task: Task, split: str, reference: np.ndarray, values: np.ndarray, budget: Budget, index=None) -> float:
    """How much worse `values` are than `reference`, in the budget's unit; positive is worse.

    Args:
        reference, values: (items,) item values of the float32 model and of the model judged.
        index: items to use, with repetition; None uses all.
    """
    before, after = task.aggregate(split, reference, index), task.aggregate(split, values, index)
    drop = before - after if task.higher_is_better else after - before
    return drop / abs(before) if (budget.relative or task.relative) and before else drop


def drop_error(task: Task, split: str, reference: np.ndarray, values: np.ndarray, budget: Budget) -> float:
    """Standard error of the paired drop: of the mean where the metric is one, by grouped jackknife otherwise.

    Where the task has clusters, whole clusters are what varies.
    """
    n, clusters = len(values), task.clusters(split)
    if task.mean_of_items and not (budget.relative or task.relative):
        found = reference - values
        if clusters is None:
            return float(np.std(found)) / math.sqrt(n)
        return float(np.sqrt((np.bincount(clusters, found - found.mean()) ** 2).sum())) / n
    units = np.arange(n) if clusters is None else clusters
    folds = np.array_split(np.random.default_rng(0).permutation(np.unique(units)), min(len(np.unique(units)), 50))
    kept = [np.flatnonzero(~np.isin(units, fold)) for fold in folds if len(folds) > 1]
    drops = [paired_drop(task, split, reference, values, budget, index) for index in kept]
    return float(np.std(drops)) * math.sqrt(len(folds) - 1) if drops else math.inf


def sample_error(
    task: Task, split: str, reference: np.ndarray, values: np.ndarray, budget: Budget, index: np.ndarray
) -> float:
    """What `drop_error` says of all items of a split, told from some of them: of the drop on as many items as these.

    One more item, or cluster, changed as much as it can be, is counted in: few items without any change prove little. Of a
    cluster only some items are among the sample, a pair of them with a smaller probability than each: what two items of a
    cluster have in common is scaled up by that (Horvitz and Thompson 1952).

    Args:
        index: the items, which were chosen by chance.
    """
    n, total, clusters = len(index), len(reference), task.clusters(split)
    if task.mean_of_items and not (budget.relative or task.relative):
        found = (reference - values)[index]
        found = found - found.mean()
        size, squares = 1.0, float((found**2).sum())
        most = (task.bounds[1] - task.bounds[0]) ** 2 if task.bounds is not None else 0.0
        if clusters is not None and n > 1:
            size = total / len(np.unique(clusters))
            common = float((np.bincount(clusters[index], found) ** 2).sum()) - squares
            squares += max(0.0, common) * (total - 1) / (n - 1)
        return math.sqrt((squares + most * size**2) / (n + size) / n)
    units = np.arange(n) if clusters is None else clusters[index]
    different = np.unique(units)
    order = different if clusters is None else np.random.default_rng(0).permutation(different)
    folds = np.array_split(order, min(len(order), 50))
    drops = [
        paired_drop(task, split, reference, values, budget, index[~np.isin(units, fold)])
        for fold in folds
        if len(folds) > 1
    ]
    return float(np.std(drops)) * math.sqrt(len(folds) - 1) if drops else math.inf


def judge(
    task: Task, split: str, reference: np.ndarray, values: np.ndarray, budget: Budget, *, seed: int = 0,
    confidence: float | None = None,
) -> Verdict:  # fmt: skip
    """PASS if the drop is below the budget with confidence, FAIL if above it with confidence, else INCONCLUSIVE.

    With `budget.confidence` None the point estimate decides; the verdict's `method` says so.

    Args:
        confidence: instead of the budget's, where the data were used before (see `certify.ledger`).
    """
    n, clusters = len(values), task.clusters(split)
    drop = paired_drop(task, split, reference, values, budget)
    level = confidence or budget.confidence
    evidence: tuple[np.ndarray, float] | None = None  # what was bet on
    if np.array_equal(reference, values):
        bound = Bound(0.0, 0.0, "identical outcomes on every item")
        if task.mean_of_items and task.bounds is not None and level is not None:
            width = paired_drop(task, split, reference, reference - (task.bounds[1] - task.bounds[0]), budget)
            evidence = np.zeros(n), abs(width)
            bound = betting_bounds(*evidence, level, seed, clusters)
    elif level is None:
        bound = Bound(drop, drop, "point estimate only, no confidence")
    elif task.mean_of_items and task.bounds is not None and not (budget.relative or task.relative):
        sign = 1 if task.higher_is_better else -1
        evidence = sign * (reference - values), task.bounds[1] - task.bounds[0]
        bound = betting_bounds(*evidence, level, seed, clusters)
    else:
        bound = bootstrap_bounds(
            lambda index: paired_drop(task, split, reference, values, budget, index), n, level, seed, clusters=clusters
        )
    if excess(bound.upper, budget) <= 0:
        status = "PASS"
    elif excess(bound.lower, budget) > 0:
        status = "FAIL"
    else:
        status = "INCONCLUSIVE"
    needed = None
    if status == "INCONCLUSIVE" and evidence is not None:
        needed = bets_needed(*evidence, budget.drop, level or 0.95, seed, clusters)
    elif status == "INCONCLUSIVE":
        deviation = drop_error(task, split, reference, values, budget) * math.sqrt(n)
        needed = items_needed(drop, deviation, budget.drop, level or 0.95)
    return Verdict(
        status=status,
        metric=task.metric,
        float_value=task.aggregate(split, reference),
        quantized_value=task.aggregate(split, values),
        drop=drop,
        upper_bound=bound.upper,
        lower_bound=bound.lower,
        confidence=level,
        n=n,
        method=bound.method,
        needed=needed,
        clusters=None if clusters is None else len(np.unique(clusters)),
    )
