"""What the items that were not read may still change: a posterior, where the most fragile items are read first.

Few items change under quantization, and those that do lie near a decision of the float model: at the front of an order by
fragility, the fewer the further back. The rate of changes at place u in [0, 1] of that order is taken to be

    rate(u) = height · exp(-u / depth) + even

with the three unknown. `even` is what fragility does not explain, as of a broken map. Each item changes or does not
(Bernoulli), so the posterior is a sum over a grid of the three. It gives the number of changes that are still to come; what
one is worth is taken from those seen: a right answer can only become wrong. With all items read nothing is left to guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

DEPTHS = np.geomspace(0.004, 4, 32)
"""With a prior weight of 1/√depth: rather few items than many."""
HEIGHTS = np.array([0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0])
EVEN = np.array([0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0])
"""The k-th has a prior weight of 1/k²: most maps change nothing but the fragile."""
BINS = 64
"""Of places, within which the rate is taken to be constant."""


@dataclass(frozen=True)
class Left:
    """Posterior of the whole split's change, from some of its items.

    Attributes:
        drop: mean change of an item.
        deviation: standard deviation of an item's change.
        error: standard deviation of the posterior of `drop + weight · deviation` (see `left`).
    """

    drop: float
    deviation: float
    error: float


def left(
    places: np.ndarray,
    before: np.ndarray,
    read: np.ndarray,
    drops: np.ndarray,
    bounds: tuple[float, float],
    weight: float = 0.0,
) -> Left:
    """
    Args:
        places: (N,) place of each item in the order by fragility.
        before: (N,) values of the float model, within `bounds`: what is at one of them can only move towards the other.
        read: (n,) items that were read.
        drops: (n,) how much lower their values are now.
        weight: of `deviation` in the quantity that `error` is of.
    """
    total, bins = len(places), places * BINS // len(places)
    changed = drops != 0
    unread = np.ones(total, bool)
    unread[read] = False
    known, found = np.bincount(bins[read], minlength=BINS), np.bincount(bins[read[changed]], minlength=BINS)
    rates, log_yes, log_no, log_prior = _grid()
    log_posterior = log_yes @ found + log_no @ (known - found) + log_prior
    posterior = np.exp(log_posterior - log_posterior.max())
    posterior /= posterior.sum()

    size, square = _sizes(before[read[changed]], drops[changed], bounds)
    sizes = size(before[unread])
    count, amount = (np.bincount(bins[unread], w, minlength=BINS) for w in (None, sizes))
    rate = posterior @ rates
    drop = (float(drops.sum()) + float(rate @ amount)) / total
    second = (float((drops**2).sum()) + float(rate @ count) * square) / total
    deviation = math.sqrt(max(second - drop**2, 0.0))
    # One change d moves the quantity by (d + c d²) / N, to first order.
    c = weight / (2 * deviation) if deviation else 0.0
    among = rates @ (amount + c * square * count)
    spread = float(posterior @ (among - posterior @ among) ** 2)
    each = square * (float(rate @ count) * (1 + c**2 * square) + 2 * c * float(rate @ amount))
    return Left(drop, deviation, math.sqrt(max(each, 0.0) + spread) / total)


def _sizes(
    before: np.ndarray, drops: np.ndarray, bounds: tuple[float, float]
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """What a change is worth: (its mean, a linear function of the value before; its mean square), from the changes seen.

    Two more are counted in: of an item at either bound, to the other. Few alike prove little.
    """
    low, high = bounds
    x, y = np.append(before, (low, high)), np.append(drops, (low - high, high - low))
    slope, start = np.polyfit(x, y, 1)
    return lambda values: start + slope * values, float(np.mean(y**2))


@cache
def _grid() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(points, BINS) rates, their logarithms, those of 1 - rate, and (points,) log prior."""
    centres = (np.arange(BINS) + 0.5) / BINS
    depth, height, even = (part.ravel()[:, None] for part in np.meshgrid(DEPTHS, HEIGHTS, EVEN, indexing="ij"))
    rates = np.clip(height * np.exp(-centres / depth) + even, 1e-9, 1 - 1e-9)
    prior = -2 * np.log(1 + np.searchsorted(EVEN, even[:, 0])) - np.log(depth[:, 0]) / 2
    return rates, np.log(rates), np.log1p(-rates), prior
