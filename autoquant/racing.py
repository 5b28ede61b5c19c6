"""The search split as a race course: in which order its items are read, and what those read so far say of a map.

The order is by chance, or, where the metric is a mean of bounded items and noise in the float model's outputs tells which of
them can change, by that. What `figures` says of some items is about the whole split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from torch import Tensor

from autoquant.certify.judge import drop_error, excess, paired_drop, sample_error
from autoquant.fragility import fragility
from autoquant.search.changes import left
from autoquant.search.race import Order, decide, known
from autoquant.tasks.base import Task
from autoquant.values import Budget


@dataclass(frozen=True)
class Figures:
    """What is known of a map after some items.

    Attributes:
        drop: of the metric, on the whole split as far as it can be told.
        error: standard error of the drop on as many items by chance as were read.
        margin: what the certified bound is expected to exceed the budget by.
        within: whether the margin on the whole split is 0 or less; None while that is open.
    """

    drop: float
    error: float
    margin: float
    items: int
    within: bool | None


@dataclass(frozen=True)
class Course:
    """Of one task, budget and float model.

    Attributes:
        before: (items,) values of the float model on the search split.
    """

    task: Task
    budget: Budget
    before: np.ndarray
    order: Order

    def figures(self, after: np.ndarray, count: int) -> Figures:
        """Of a map, from the first `count` items of the order.

        Args:
            after: (items,) its values; those of items further back are not looked at.
        """
        total, certification = len(self.before), self.task.items("certification")
        if count == total:
            drop = paired_drop(self.task, "search", self.before, after, self.budget)
            error = drop_error(self.task, "search", self.before, after, self.budget)
            margin = expected_margin(drop, error, count, certification, self.budget)
            return Figures(drop, error, margin, count, known(margin, 0.0, count, total))
        read = self.order.items[:count]
        if self.order.places is None:
            drop = paired_drop(self.task, "search", self.before, after, self.budget, read)
            error = sample_error(self.task, "search", self.before, after, self.budget, read)
            margin = expected_margin(drop, error, count, certification, self.budget)
            return Figures(drop, error, margin, count, decide(margin, error, count, total))
        assert self.task.bounds is not None
        sign = 1 if self.task.higher_is_better else -1
        low, high = sorted(sign * bound for bound in self.task.bounds)
        reach = normal(self.budget) / math.sqrt(max(1, certification))
        drops = sign * (self.before - after)[read]
        found = left(self.order.places, sign * self.before, read, drops, (low, high), reach)
        error = found.deviation / math.sqrt(count)
        margin = expected_margin(found.drop, error, count, certification, self.budget)
        return Figures(found.drop, error, margin, count, known(margin, found.error, count, total))

    def unchanged(self) -> Figures:
        """Of the float model itself: it drops nothing by definition, and no item has to be read."""
        return Figures(0.0, 0.0, expected_margin(0.0, 0.0, 0, self.task.items("certification"), self.budget), 0, True)

    def run(self, after: np.ndarray) -> Figures:
        """The race of a map whose values are all known already."""
        return next(found for count in self.order.looks() if (found := self.figures(after, count)).within is not None)


def order_of(task: Task, budget: Budget, reduced: Tensor, seed: int) -> Order:
    """By fragility where that says something, else by chance.

    Args:
        reduced: what was kept of the float model's outputs on the search split.
    """
    by_changes = task.mean_of_items and task.bounds is not None and not (budget.relative or task.relative)
    found = fragility(task, "search", reduced, seed) if by_changes else None
    return Order.by_chance(task.items("search"), seed) if found is None else Order.by_fragility(found, seed)


def normal(budget: Budget) -> float:
    """How many standard errors the certified bound is expected to be above the drop."""
    return float(ndtri(budget.confidence)) if budget.confidence else 0.0


def expected_margin(drop: float, error: float, items: int, certification: int, budget: Budget) -> float:
    """What the certified bound is expected to exceed the budget by, from the drop on some items and its standard error."""
    return float(excess(drop + normal(budget) * error * math.sqrt(items / max(1, certification)), budget))
