"""One-sided confidence bounds on the mean of a paired drop.

`betting_bounds` holds at every sample size: it is the capital process of Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting" (JRSS-B 2024), eq. 14 with the predictable plug-in bets of eq. 26 for a fixed n.
`bootstrap_bounds` serves metrics that are not a mean of items and is asymptotic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from autoquant.errors import NumericsError

_LARGEST_BET = 0.75
"""Share of the capital that one bet may risk at most."""


@dataclass(frozen=True)
class Bound:
    lower: float
    upper: float
    method: str


def betting_bounds(drops: np.ndarray, width: float, confidence: float, seed: int = 0) -> Bound:
    """One-sided lower and upper bounds on E[drop], each at `confidence`.

    Args:
        drops: (n,) paired drops in [-width, width].
        width: the range of an item's value.
        seed: of the order in which the items are read; the order must not depend on the outcome.

    Raises:
        NumericsError: a drop is NaN or outside [-width, width]; nothing can be said then.
    """
    drops = np.asarray(drops, float)
    if not bool((np.abs(drops) <= width * (1 + 1e-9)).all()):
        raise NumericsError(
            f"A drop of an item is not within ±{width}: the task's `bounds` are not those of its values."
        )
    order = np.random.default_rng(seed).permutation(len(drops))
    unit = (1 - np.clip(drops[order] / width, -1, 1)) / 2  # mean y of this: E[drop] = width · (1 - 2y)
    alpha = 1 - confidence
    upper = width * (1 - 2 * _lower_mean(unit, alpha))
    lower = -width * (1 - 2 * _lower_mean(1 - unit, alpha))
    return Bound(lower, upper, "betting (valid at any n)")


def _lower_mean(unit: np.ndarray, alpha: float) -> float:
    """The largest mean in [0, 1] that betting rejects as too small: the capital against it has reached 1/alpha."""
    bets = predictable_bets(unit, alpha)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        rejected = log_capital(unit, bets, middle).max() >= math.log(1 / alpha)
        low, high = (middle, high) if rejected else (low, middle)
    return low


def predictable_bets(unit: np.ndarray, alpha: float) -> np.ndarray:
    """(n,) bets; each is made from the items before its own, or the capital would be no evidence."""
    n = len(unit)
    count = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(unit)) / (count + 1)
    variance = (0.25 + np.cumsum((unit - mean) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    return np.sqrt(2 * math.log(1 / alpha) / (n * before))


def log_capital(unit: np.ndarray, bets: np.ndarray, mean: float) -> np.ndarray:
    """(n,) log of the capital after each item, from 1, of who bets that the items' expectation is above `mean`.

    If it is `mean`, the expected capital stays 1.
    """
    return np.cumsum(np.log1p(np.minimum(bets, _LARGEST_BET / max(mean, 1e-12)) * (unit - mean)))


def bootstrap_bounds(
    statistic: Callable[[np.ndarray], float], n: int, confidence: float, seed: int = 0, resamples: int = 1999
) -> Bound:
    """BCa bootstrap bounds (Efron 1987) on a statistic of item indices; asymptotic.

    Args:
        statistic: (n,) indices, with repetition → the drop on these items.
    """
    indices = np.arange(n)

    def of_sample(index: np.ndarray) -> float:
        return statistic(index.astype(int))

    generator = np.random.default_rng(seed)
    base = statistic(indices)
    draws = np.array([of_sample(generator.integers(0, n, n)) for _ in range(resamples)])
    if np.ptp(draws) == 0:
        return Bound(base, base, "BCa bootstrap (asymptotic)")
    below = np.clip(
        np.mean(draws < base) + np.mean(draws == base) / 2, 1 / (resamples + 1), resamples / (resamples + 1)
    )
    bias = stats.norm.ppf(below)
    folds = np.array_split(generator.permutation(n), min(n, 200))  # grouped jackknife: enough for the acceleration
    left_out = np.array([statistic(np.setdiff1d(indices, fold)) for fold in folds])
    centred = left_out.mean() - left_out
    acceleration = (centred**3).sum() / (6 * max((centred**2).sum(), 1e-300) ** 1.5)

    def at(level: float) -> float:
        z = bias + stats.norm.ppf(level)
        return float(np.quantile(draws, stats.norm.cdf(bias + z / (1 - acceleration * z))))

    return Bound(at(1 - confidence), at(confidence), "BCa bootstrap (asymptotic)")


def bets_needed(drops: np.ndarray, width: float, budget: float, confidence: float, seed: int = 0) -> int | None:
    """Items with which `betting_bounds` would settle whether the drop is within the budget, if they are like these.

    Found by drawing ever larger samples from `drops` until four of five are settled: a bound that holds at any n costs a
    few hundred items before it says anything, which no normal approximation knows.

    Returns:
        None when `LARGEST` items would not.
    """
    rng = np.random.default_rng(seed)
    n = len(drops)
    while (n := math.ceil(1.3 * n)) <= LARGEST:
        bounds = [betting_bounds(rng.choice(drops, n), width, confidence, seed) for _ in range(5)]
        if sum(bound.upper <= budget or bound.lower > budget for bound in bounds) >= 4:
            return n
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
    z = stats.norm.ppf(confidence) + stats.norm.ppf(power)
    return max(1, math.ceil((z * deviation / gap) ** 2))
