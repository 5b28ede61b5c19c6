"""Is a map within the budget on the whole split? Judged from its first items, as soon as the answer is known.

Items come in one random order that all maps share. What is looked for is the answer that the whole split would give, a
finite population read without replacement, so the reading is nearly free of doubt before its end.

*A mean of bounded items*: a betting confidence sequence without replacement (Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting", JRSS-B 2024, section 5), which may be looked at after every item. If the whole split's
mean is on one side, the other is declared with probability at most `ERROR`.

*Any other metric* (Spearman, a ratio of perplexities): asymptotic. The difference between the metric on n of N items and on
all of them has about the standard error of the metric on n items times √(1 - n/N); a look declares a side when the
margin is beyond the normal quantile at `ERROR`, divided by the number of looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

ERROR = 0.02
"""Probability, at most, of an answer that the whole split would not give."""
FIRST = 64
"""Items of the first chunk, at least."""
GROWTH = 1.4
"""Of the items read from one look to the next."""
LEAST = 30
"""Items before an asymptotic rule says anything."""
LARGEST_BET = 0.75


def looks(total: int) -> list[int]:
    """Numbers of items after which a look is taken; the last is all of them."""
    found, size = [], float(max(FIRST, total / 8))
    while size * math.sqrt(GROWTH) < total:  # no small chunk at the end
        found.append(int(size))
        size *= GROWTH
    return [*found, total]


def decide_mean(drops: np.ndarray, total: int, width: float, limit: float) -> bool | None:
    """Whether the mean drop of all `total` items is at most `limit`; None while that is open.

    Args:
        drops: (n,) of the items read so far, in the shared random order, within ±width.
        limit: the largest mean drop that is within the budget.
    """
    if len(drops) == total:
        return bool(np.mean(drops) <= limit)
    unit = (1 - np.clip(np.asarray(drops, float) / width, -1, 1)) / 2
    least = (1 - limit / width) / 2  # the drop is within the limit where the mean of `unit` is at least this
    if _exceeds(unit, total, least):
        return True
    if _exceeds(1 - unit, total, 1 - least):
        return False
    return None


def _exceeds(unit: np.ndarray, total: int, mean: float) -> bool:
    """Whether betting has shown, before the end, that all items' mean is above `mean`: the capital has reached 1/`ERROR`."""
    n = len(unit)
    before = np.concatenate([[0.0], np.cumsum(unit)[:-1]])
    read = np.arange(n)
    expected = (total * mean - before) / (total - read)  # of the next item, if `mean` is that of all
    if (total * mean - unit.sum()) < 0:
        return True  # more than that is already in
    safe = np.clip(expected, 1e-9, 1)
    average = (0.5 + before) / (read + 1)
    squares = np.concatenate([[0.0], np.cumsum((unit - (0.5 + np.cumsum(unit)) / (read + 2)) ** 2)[:-1]])
    variance = (0.25 + squares) / (read + 1)
    edge = average - safe
    bets = np.clip(edge / (variance + edge**2), 0, LARGEST_BET / safe)  # the approximate growth-rate adaptive bet
    return bool(np.cumsum(np.log1p(bets * (unit - expected))).max() >= math.log(1 / ERROR))


def decide_asymptotic(margin: float, error: float, items: int, total: int, count: int) -> bool | None:
    """Whether the margin of all `total` items is at most 0; None while that is open.

    Args:
        margin, error: of the items read so far, and the standard error of the drop on them.
        count: looks that are taken before the last.
    """
    if items == total:
        return margin <= 0
    if items < LEAST:
        return None
    reach = stats.norm.ppf(1 - ERROR / max(1, count)) * error * math.sqrt(1 - items / total)
    return None if abs(margin) <= reach else margin < 0


def chunks(order: Sequence[int]) -> list[list[int]]:
    """The items of a shared order, cut at `looks`."""
    ends = looks(len(order))
    return [list(order[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
