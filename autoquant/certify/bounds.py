"""One-sided confidence bounds on the mean of a paired drop.

`betting_bounds` holds at every sample size: it is the capital process of Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting" (JRSS-B 2024), eq. 14 with the predictable plug-in bets of eq. 26 for a fixed n.
`bootstrap_bounds` serves metrics that are not a mean of items and is asymptotic.

Items of one cluster are not independent. Betting then takes a cluster at a time: the bet is laid on the total of its items
against what that total would be at the supposed mean, in proportion to its size, except that no bet risks more than
`LARGEST_BET` of the capital. While no cluster is so large that its bet is cut, this holds for the mean over items without
further assumptions; where one is, it supposes that the size of a cluster says nothing of its mean. The bootstrap draws whole
clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from autoquant.errors import NumericsError

LARGEST_BET = 0.75
"""Share of the capital that one bet may risk at most."""


@dataclass(frozen=True)
class Bound:
    lower: float
    upper: float
    method: str


def betting_bounds(
    drops: np.ndarray, width: float, confidence: float, seed: int = 0, clusters: np.ndarray | None = None
) -> Bound:
    """One-sided lower and upper bounds on E[drop], each at `confidence`.

    Args:
        drops: (n,) paired drops in [-width, width].
        width: the range of an item's value.
        seed: of the order in which the items (or clusters) are read; the order must not depend on the outcome.
        clusters: (n,) number of each item's cluster; None: all items are independent.

    Raises:
        NumericsError: a drop is NaN or outside [-width, width]; nothing can be said then.
    """
    totals, sizes = _totals(unit_drops(drops, width), clusters)
    order = np.random.default_rng(seed).permutation(len(totals))
    totals, sizes = totals[order], sizes[order]
    alpha = 1 - confidence
    upper = width * (1 - 2 * _lower_mean(totals, alpha, sizes))
    lower = -width * (1 - 2 * _lower_mean(sizes - totals, alpha, sizes))
    what = "betting" if clusters is None else f"betting on {len(sizes)} clusters"
    return Bound(lower, upper, f"{what} (valid at any n)")


def unit_drops(drops: np.ndarray, width: float) -> np.ndarray:
    """(n,) drops in [-width, width] as values in [0, 1], 1 the best: if their mean is y, E[drop] = width · (1 - 2y).

    Raises:
        NumericsError: a drop is NaN or outside [-width, width].
    """
    drops = np.asarray(drops, float)
    if not bool((np.abs(drops) <= width * (1 + 1e-9)).all()):
        raise NumericsError(
            f"A drop of an item is not within ±{width}: the task's `bounds` are not those of its values."
        )
    return (1 - np.clip(drops / width, -1, 1)) / 2


def _totals(unit: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(clusters,) sum and number of the items of each cluster; without clusters each item is one."""
    if clusters is None:
        return unit, np.ones(len(unit))
    _, place = np.unique(clusters, return_inverse=True)
    return np.bincount(place, unit), np.bincount(place).astype(float)


def _lower_mean(totals: np.ndarray, alpha: float, sizes: np.ndarray) -> float:
    """The largest mean in [0, 1] that betting rejects as too small: the capital against it has reached 1/alpha."""
    bets = predictable_bets(totals, alpha, sizes)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        rejected = log_capital(totals, bets, middle, sizes).max() >= math.log(1 / alpha)
        low, high = (middle, high) if rejected else (low, middle)
    return low


def predictable_bets(totals: np.ndarray, alpha: float, sizes: np.ndarray | float = 1.0) -> np.ndarray:
    """(n,) bets; each is made from the items (or clusters) before its own, or the capital would be no evidence.

    Args:
        totals: (n,) values in [0, 1], or sums of them over clusters of these `sizes`.
    """
    n = len(totals)
    count = np.arange(1, n + 1)
    sizes = np.broadcast_to(np.asarray(sizes, float), n)
    typical = float(sizes.mean()) if n else 1.0  # how large clusters are is known before any outcome
    mean = (0.5 * typical + np.cumsum(totals)) / (typical + np.cumsum(sizes))
    variance = (0.25 * typical + np.cumsum((totals - sizes * mean) ** 2)) / (count + 1)
    before = np.concatenate([[0.25 * typical], variance[:-1]])
    return np.sqrt(2 * math.log(1 / alpha) / (n * before))


def log_capital(totals: np.ndarray, bets: np.ndarray, mean: float, sizes: np.ndarray | float = 1.0) -> np.ndarray:
    """(n,) log of the capital after each item, from 1, of who bets that the items' expectation is above `mean`.

    If it is `mean`, the expected capital stays 1.
    """
    limit = LARGEST_BET / (sizes * max(mean, 1e-12))
    return np.cumsum(np.log1p(np.minimum(bets, limit) * (totals - sizes * mean)))


def settled(totals: np.ndarray, sizes: np.ndarray, width: float, budget: float, confidence: float) -> str | None:
    """`PASS` or `FAIL` where betting on these totals, in this order, tells whether the drop is within the budget."""
    alpha, least = 1 - confidence, (1 - budget / width) / 2  # the mean at which the drop is the budget
    for verdict, found, mean in (("PASS", totals, least), ("FAIL", sizes - totals, 1 - least)):
        if log_capital(found, predictable_bets(found, alpha, sizes), mean, sizes).max() >= math.log(1 / alpha):
            return verdict
    return None


def bootstrap_bounds(
    statistic: Callable[[np.ndarray], float], n: int, confidence: float, seed: int = 0, resamples: int = 1999,
    clusters: np.ndarray | None = None,
) -> Bound:  # fmt: skip
    """BCa bootstrap bounds (Efron 1987) on a statistic of item indices; asymptotic.

    Args:
        statistic: (n,) indices, with repetition → the drop on these items.
        clusters: (n,) number of each item's cluster; whole clusters are drawn then (Davison and Hinkley 1997, 3.8).
    """
    members = [np.array([place]) for place in range(n)] if clusters is None else cluster_members(clusters)
    units, method = len(members), "BCa bootstrap (asymptotic)"
    if clusters is not None:
        method = f"BCa bootstrap of {units} clusters (asymptotic)"

    def items(chosen: np.ndarray) -> np.ndarray:
        return chosen if clusters is None else np.concatenate([members[one] for one in chosen])

    generator = np.random.default_rng(seed)
    base = statistic(np.arange(n))
    draws = np.array([statistic(items(generator.integers(0, units, units))) for _ in range(resamples)])
    if np.ptp(draws) == 0:
        return Bound(base, base, method)
    below = np.clip(
        np.mean(draws < base) + np.mean(draws == base) / 2, 1 / (resamples + 1), resamples / (resamples + 1)
    )
    bias = ndtri(below)
    folds = np.array_split(generator.permutation(units), min(units, 200))  # grouped: enough for the acceleration
    everything = np.arange(units)
    left_out = np.array([statistic(items(np.setdiff1d(everything, fold))) for fold in folds if len(fold) < units])
    centred = left_out.mean() - left_out
    acceleration = (centred**3).sum() / (6 * max((centred**2).sum(), 1e-300) ** 1.5)

    def at(level: float) -> float:
        z = bias + ndtri(level)
        return float(np.quantile(draws, ndtr(bias + z / (1 - acceleration * z))))

    return Bound(at(1 - confidence), at(confidence), method)


def cluster_members(clusters: np.ndarray) -> list[np.ndarray]:
    """The item numbers of each cluster."""
    _, place = np.unique(clusters, return_inverse=True)
    order = np.argsort(place, kind="stable")
    return np.split(order, np.cumsum(np.bincount(place))[:-1])


def bets_needed(
    drops: np.ndarray, width: float, budget: float, confidence: float, seed: int = 0,
    clusters: np.ndarray | None = None,
) -> int | None:  # fmt: skip
    """Items with which `betting_bounds` would settle whether the drop is within the budget, if they are like these.

    Found by drawing ever larger samples from `drops` until four of five are settled: a bound that holds at any n costs a
    few hundred items before it says anything, which no normal approximation knows.

    Returns:
        None when `LARGEST` items would not.
    """
    rng = np.random.default_rng(seed)
    totals, sizes = _totals(unit_drops(drops, width), clusters)
    n = len(totals)
    while (n := math.ceil(1.3 * n)) * sizes.mean() <= LARGEST:
        draws = [rng.integers(0, len(totals), n) for _ in range(5)]
        if sum(settled(totals[one], sizes[one], width, budget, confidence) is not None for one in draws) >= 4:
            return math.ceil(n * sizes.mean())
    return None


LARGEST = 10**6
"""Items that nobody will collect."""


def items_needed(drop: float, deviation: float, budget: float, confidence: float, power: float = 0.8) -> int | None:
    """Items that would settle whether the drop is within the budget, with this power (normal approximation).

    Args:
        drop, deviation: mean and standard deviation of an item's drop, as seen so far.

    Returns:
        None when the drop equals the budget: no number of items settles that.
    """
    gap = abs(budget - drop)
    if gap < 1e-9:
        return None
    z = ndtri(confidence) + ndtri(power)
    return max(1, math.ceil((z * deviation / gap) ** 2))
