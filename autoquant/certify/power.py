"""Before anything is searched: what can these certification data settle, and how many items would the budget need?

A budget b is settled with n items if the bound on the drop ends up on one side of it. With f the share of items whose outcome
changes (by 1, half of them for the worse), the normal approximation is n = 6.18 f / b² (95% confidence, 80% power, no drop).
Betting bounds need more where f is small, and get by with less where it is large, so they are tried on drawn outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autoquant.certify.bounds import LARGEST, settled

POWER = 0.8
DRAWS = 25
SHARES = (0.01, 0.02, 0.05, 0.1)
"""Shares of changed outcomes for which the number of items is told; int8 changes some 1 to 5% of answers, less of it in
bfloat16."""


@dataclass(frozen=True)
class Power:
    """What data can settle.

    Attributes:
        n, clusters: items, and independent groups of them (None: each item is one).
        metric, float_value, float_lower, float_upper: the float model's metric on these data, with its own bounds, 95% both
            ways; None where they say nothing (agreement with itself).
        budget, confidence: what was asked.
        settles: the largest share of outcomes that may change for these data to settle the budget with 80% power if there is
            no drop; None if not even unchanged outcomes do; `settles_half` the same at a drop of half the budget.
        needed: share of changed outcomes → items that the budget needs, None where nobody will collect them.
        known: whether this can be told beforehand: only of metrics that are a mean of bounded items.
    """

    n: int
    clusters: int | None
    metric: str
    float_value: float
    float_lower: float | None
    float_upper: float | None
    budget: float
    confidence: float | None
    settles: float | None = None
    settles_half: float | None = None
    needed: Mapping[str, int | None] | None = None
    known: bool = False

    @property
    def enough(self) -> bool | None:
        """Whether the data can settle the budget if 1% of outcomes change; None where that cannot be told."""
        if not self.known:
            return None
        return self.settles is not None and self.settles >= SHARES[0]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "enough": self.enough}


def reach(
    n: int, budget: float, width: float, confidence: float, sizes: np.ndarray | None = None, drop: float = 0.0
) -> float | None:
    """The largest share of changed outcomes at which these items settle the budget with 80% power.

    Args:
        sizes: items of each cluster; they are taken to change together.
        drop: the true drop, below the budget.

    Returns:
        None if they do not settle it even with the fewest changes that the drop takes.
    """
    least = abs(drop) / width
    if not _powerful(n, least, drop, budget, width, confidence, sizes):
        return None
    low, high = least, 1.0
    if _powerful(n, high, drop, budget, width, confidence, sizes):
        return high
    while high - low > max(1e-3, 0.05 * high):
        middle = (low + high) / 2
        low, high = (middle, high) if _powerful(n, middle, drop, budget, width, confidence, sizes) else (low, middle)
    return low


def items_for(share: float, budget: float, width: float, confidence: float, group: float = 1.0) -> int | None:
    """Items that settle the budget with 80% power if this share of outcomes changes and there is no drop.

    Args:
        group: items of a cluster.

    Returns:
        None if that takes more than `LARGEST`.
    """
    if budget <= 0:
        return None
    units = max(20, math.ceil(6.18 * share * (width / budget) ** 2))
    while units * group <= LARGEST:
        if _powerful(units, share, 0.0, budget, width, confidence, None):
            return math.ceil(units * group)
        units = math.ceil(1.2 * units)
    return None


def _powerful(
    n: int, share: float, drop: float, budget: float, width: float, confidence: float, sizes: np.ndarray | None
) -> bool:
    sizes = np.ones(n) if sizes is None else np.asarray(sizes, float)
    worse, rng, found = (share + drop / width) / 2, np.random.default_rng(0), 0
    for draw in range(DRAWS):
        chance = rng.random(len(sizes))
        unit = np.where(chance < worse, 0.0, np.where(chance < share, 1.0, 0.5))
        found += settled(unit * sizes, sizes, width, budget, confidence) is not None
        if found + DRAWS - draw - 1 < POWER * DRAWS:
            return False
    return True
