"""Is a map within the budget on the whole split? Judged from its first items, as soon as the answer is known.

Items come in one random order that all maps share. What is looked for is the answer that the whole split would give: a
finite population, read without replacement. The margin on n of N items differs from that on all of them by about its
standard error times √(1 - n/N) (Cochran, "Sampling Techniques", 1977, section 2.6); with nothing known of it beforehand, that
is the posterior of the whole split's margin, and a look declares a side when the other has a probability of at most
`ERROR`. A posterior may be looked at as often as one likes: over maps whose margins are spread about 0, at most that share
of the answers is wrong (maps at the very budget are wrong more often, all others hardly ever). Asymptotic; certification,
which is not, has the last word.

A confidence sequence by betting without replacement holds for each single map, whatever its margin, and was tried first. It
read 90% of the items where this reads 74% (see benchmarks): answers that are right for the worst map cost all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

ERROR = 0.02
"""Share of the answers, at most, that the whole split would not give."""
FIRST = 64
"""Items of the first chunk, at least."""
GROWTH = 1.4
"""Of the items read from one look to the next."""
LEAST = 30
"""Items before anything is said."""


def looks(total: int) -> list[int]:
    """Numbers of items after which a look is taken; the last is all of them."""
    found, size = [], float(max(FIRST, total / 8))
    while size * math.sqrt(GROWTH) < total:  # no small chunk at the end
        found.append(int(size))
        size *= GROWTH
    return [*found, total]


def decide(margin: float, error: float, items: int, total: int) -> bool | None:
    """Whether the margin of all `total` items is at most 0; None while that is open.

    Args:
        margin, error: of the items read so far, and the standard error of the drop on them.
    """
    if items == total:
        return margin <= 0
    if items < LEAST:
        return None
    reach = stats.norm.ppf(1 - ERROR) * error * math.sqrt(1 - items / total)
    return None if abs(margin) <= reach else margin < 0


def chunks(order: Sequence[int]) -> list[list[int]]:
    """The items of a shared order, cut at `looks`."""
    ends = looks(len(order))
    return [list(order[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
