"""Is a map within the budget on the whole split? Judged from its first items, as soon as the answer is known.

What is looked for is the answer that the whole split would give: a finite population, read without replacement. The margin
on n of N items read by chance differs from that on all of them by about its standard error times √(1 - n/N) (Cochran,
"Sampling Techniques", 1977, section 2.6); with nothing known of it beforehand, that is the posterior of the whole split's
margin, and a look declares a side when the other has a probability of at most `ERROR`. A posterior may be looked at as often
as one likes: over maps whose margins are spread about 0, at most that share of the answers is wrong (maps at the very budget
are wrong more often, all others hardly ever). Asymptotic; certification, which is not, has the last word.

Where the float model's outputs tell which items can change at all (see `autoquant.fragility`), those are read first, and what
the unread ones may still change has a posterior of its own (`autoquant.search.changes`).

A confidence sequence by betting without replacement holds for each single map, whatever its margin, and was tried first. It
read 90% of the items (see benchmarks): answers that are right for the worst map cost all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

ERROR = 0.02
"""Share of the answers, at most, that the whole split would not give."""
FIRST = 64
"""Items of the first chunk, at least."""
GROWTH = 1.4
"""Of the items read from one look to the next."""
LEAST = 30
"""Items before anything is said."""
CONTROL = 0.5
"""Share of the items that are read by chance, whatever their place among the fragile ones: what noise in the outputs would
not change, a broken map may. And they carry the divergence of all that is passed over."""


@dataclass(frozen=True)
class Order:
    """In which order the items of a split are read.

    Attributes:
        items: (N,) item numbers.
        places: (N,) place of each item among all, the most fragile first; None if the order is by chance.
    """

    items: np.ndarray
    places: np.ndarray | None = None

    @classmethod
    def by_chance(cls, total: int, seed: int) -> Order:
        return cls(np.random.default_rng(seed).permutation(total))

    @classmethod
    def by_fragility(cls, fragility: np.ndarray, seed: int) -> Order:
        """The most fragile first, ties by chance, and between them `CONTROL` of the reading by chance.

        Args:
            fragility: (N,) larger: less noise changes the item.
        """
        total, rng = len(fragility), np.random.default_rng(seed)
        shuffled = rng.permutation(total)
        ranked = shuffled[np.argsort(-fragility[shuffled], kind="stable")]
        places = np.empty(total, int)
        places[ranked] = np.arange(total)
        sources, read = (iter(ranked.tolist()), iter(rng.permutation(total).tolist())), dict[int, None]()
        for control in rng.random(total) < CONTROL:
            read[next(item for item in sources[int(control)] if item not in read)] = None
        return cls(np.array(list(read)), places)

    def looks(self) -> list[int]:
        """Numbers of items after which a look is taken; the last is all of them."""
        total = len(self.items)
        found, size = [], float(max(FIRST, total / (8 if self.places is None else 16)))
        while size * math.sqrt(GROWTH) < total:  # no small chunk at the end
            found.append(int(size))
            size *= GROWTH
        return [*found, total]

    def chunks(self) -> list[list[int]]:
        """The items, cut at `looks`."""
        return [part.tolist() for part in np.split(self.items, self.looks()[:-1])]

    def weights(self, count: int) -> np.ndarray:
        """(count,) weights of the items read first, with which a mean over them is an unbiased one over all.

        Items before the first unread place stand for themselves, those read by chance behind it for all behind it.
        """
        if self.places is None or count == len(self.items):
            return np.ones(count)
        places = self.places[self.items[:count]]
        complete = places < self.places[self.items[count:]].min()
        if complete.all():
            return np.ones(count)
        return np.where(complete, 1.0, (len(self.items) - complete.sum()) / (~complete).sum())


def decide(margin: float, error: float, items: int, total: int) -> bool | None:
    """Whether the margin of all `total` items, read by chance, is at most 0; None while that is open.

    Args:
        margin, error: of the items read so far, and the standard error of the drop on them.
    """
    return known(margin, error * math.sqrt(1 - items / total), items, total)


def known(margin: float, deviation: float, items: int, total: int) -> bool | None:
    """Whether the margin of all items is at most 0; None while that is open.

    Args:
        margin, deviation: mean and standard deviation of its posterior.
    """
    if items == total:
        return margin <= 0
    if items < LEAST or abs(margin) <= ndtri(1 - ERROR) * deviation:
        return None
    return margin < 0
