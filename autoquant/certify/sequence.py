"""Judge items as they come: bounds on a drop that may be looked at after every item, and an alarm when it leaves its budget.

The bounds are the betting confidence sequence of Waudby-Smith and Ramdas (JRSS-B 2024), eq. 14 with the predictable plug-in
bets of eq. 24, of all items since the start. They hold at all times at once (Ville's inequality), so stopping whenever one
likes costs nothing.

The alarm is a test of its own. A model that was good for a million items and then turns bad would be noticed late by a mean
over all of them. So capital is laid on "the drop is above the budget" from many starting points: at first, and again every
`EPOCH` items. The k-th start owns 1 / ((k + 1)(k + 2)) of the purse, which adds up to 1, so the sum stays a fair game and
reaches 1/alpha with probability alpha at most, ever, while every item's expected drop (given those before it) is within the
budget. This is the e-process of Shin, Ramdas and Rinaldo, "E-detectors" (2022), with weights that sum to one. Only the first
and the latest `KEPT` starts are carried on; leaving some out only makes the alarm later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import logsumexp

from autoquant.certify.bounds import LARGEST_BET, unit_drops

EPOCH = 500
KEPT = 64
CAUTION = 20
"""Items' worth of belief that the drop is at the budget, with which each start begins to learn its bets."""


class DropSequence:
    """Running judgement of paired drops.

    Args:
        budget: allowed mean drop, in the metric's unit.
        width: the range of an item's value; drops are in [-width, width].
        confidence: of the bounds, and of there being no false alarm, ever.
    """

    def __init__(self, budget: float, width: float, confidence: float) -> None:
        self.budget, self.width, self.confidence = budget, width, confidence
        self.n = 0
        self.total = 0.0
        self.flips = 0
        self.alarm: int | None = None
        """Item at which the alarm was raised, counted from 1."""
        self.log_purse = 0.0
        """Log of the capital laid on "the drop is above the budget"."""
        self._means = _grid(budget / width)  # of unit drops: 1 is the best
        self._bounds = [_Side(len(self._means)), _Side(len(self._means))]
        self._starts: list[_Start] = []

    @property
    def drop(self) -> float:
        """Mean drop of all items; 0 before the first."""
        return self.total / self.n if self.n else 0.0

    @property
    def upper(self) -> float:
        """One-sided upper bound on the mean drop."""
        return self.width * (1 - 2 * self._excluded(0))

    @property
    def lower(self) -> float:
        return -self.width * (1 - 2 * self._excluded(1))

    @property
    def status(self) -> str:
        """FAIL after the alarm; PASS while the drop of all items is below the budget with confidence; else INCONCLUSIVE."""
        if self.alarm is not None:
            return "FAIL"
        return "PASS" if self.n and self.upper <= self.budget + 1e-12 else "INCONCLUSIVE"

    def update(self, drops: np.ndarray) -> None:
        """Take in the drops of the next items, in the order in which they came.

        Raises:
            NumericsError: a drop is NaN or outside [-width, width].
        """
        unit = unit_drops(drops, self.width)
        place = 0
        while place < len(unit):  # in pieces that no new start falls into
            if self.n % EPOCH == 0:
                self._begin()
            piece = unit[place : place + EPOCH - self.n % EPOCH]
            self._bounds[0].update(piece, self._means, self.n, self.confidence)
            self._bounds[1].update(1 - piece, 1 - self._means, self.n, self.confidence)
            self._bet(1 - piece)
            self.n += len(piece)
            self.total += float((1 - 2 * piece).sum()) * self.width
            self.flips += int((piece != 0.5).sum())
            place += len(piece)

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `from_dict` goes on as if there had been no break."""
        return {
            "budget": self.budget,
            "width": self.width,
            "confidence": self.confidence,
            "n": self.n,
            "total": self.total,
            "flips": self.flips,
            "alarm": self.alarm,
            "log_purse": self.log_purse,
            "bounds": [side.to_dict() for side in self._bounds],
            "starts": [start.to_dict() for start in self._starts],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DropSequence:
        found = cls(value["budget"], value["width"], value["confidence"])
        for name in ("n", "total", "flips", "alarm", "log_purse"):
            setattr(found, name, value[name])
        found._bounds = [_Side.from_dict(side) for side in value["bounds"]]
        found._starts = [_Start(**start) for start in value["starts"]]
        return found

    def _excluded(self, side: int) -> float:
        """The largest mean of the grid that is excluded as too small, of unit drops (0) or of their opposites (1)."""
        means = self._means if side == 0 else 1 - self._means[::-1]
        reached = self._bounds[side].highest >= math.log(1 / (1 - self.confidence))
        reached = reached if side == 0 else reached[::-1]
        count = int(np.argmin(reached)) if not reached.all() else len(reached)  # none above the first that is possible
        return float(means[count - 1]) if count else 0.0

    def _begin(self) -> None:
        self._starts.append(_Start(number=self.n // EPOCH))
        if len(self._starts) > KEPT:
            del self._starts[1]

    def _bet(self, worse: np.ndarray) -> None:
        """Lay the capital of every start on these items; `worse` is 1 where an item got as much worse as it can."""
        null = (1 + (self.budget + 1e-12) / self.width) / 2
        shares = np.array([-math.log((s.number + 1) * (s.number + 2)) for s in self._starts])
        capital = np.stack([start.update(worse, null) for start in self._starts])
        purse = logsumexp(capital + shares[:, None], axis=0)
        reached = np.flatnonzero(purse >= math.log(1 / (1 - self.confidence)))
        if self.alarm is None and len(reached):
            self.alarm = self.n + int(reached[0]) + 1
        self.log_purse = float(purse[-1])


class _Side:
    """Capital against each mean of the grid as too small, and the highest that each has been."""

    def __init__(self, size: int) -> None:
        self.capital, self.highest = np.zeros(size), np.zeros(size)
        self.total, self.squares = 0.0, 0.0

    def update(self, unit: np.ndarray, means: np.ndarray, n: int, confidence: float) -> None:
        count = np.arange(n + 1, n + len(unit) + 1)
        mean = (0.5 + self.total + np.cumsum(unit)) / (count + 1)
        squares = self.squares + np.cumsum((unit - mean) ** 2)
        before = np.concatenate([[(0.25 + self.squares) / (n + 1)], (0.25 + squares[:-1]) / (count[:-1] + 1)])
        bets = np.sqrt(2 * math.log(1 / (1 - confidence)) / (before * count * np.log1p(count)))
        limit = LARGEST_BET / np.maximum(means, 1e-12)
        gains = np.log1p(np.minimum(bets[:, None], limit) * (unit[:, None] - means))
        path = self.capital + np.cumsum(gains, axis=0)
        self.capital, self.highest = path[-1], np.maximum(self.highest, path.max(0))
        self.total, self.squares = self.total + float(unit.sum()), float(squares[-1])

    def to_dict(self) -> dict[str, Any]:
        return {
            "capital": self.capital.tolist(),
            "highest": self.highest.tolist(),
            "total": self.total,
            "squares": self.squares,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> _Side:
        found = cls(len(value["capital"]))
        found.capital, found.highest = np.array(value["capital"]), np.array(value["highest"])
        found.total, found.squares = value["total"], value["squares"]
        return found


class _Start:
    """The capital of one starting point. Its bets are those of the fastest growth at the mean and variance seen since
    (Waudby-Smith and Ramdas, aGRAPA), and nothing while the drop seems within the budget."""

    def __init__(self, number: int, n: int = 0, total: float = 0.0, squares: float = 0.0, capital: float = 0.0) -> None:
        self.number, self.n, self.total, self.squares, self.capital = number, n, total, squares, capital

    def update(self, worse: np.ndarray, null: float) -> np.ndarray:
        """(items,) log capital after each item."""
        count = self.n + np.arange(len(worse))  # before each item
        away = worse - null
        total = self.total + np.concatenate([[0.0], np.cumsum(away)])
        squares = self.squares + np.concatenate([[0.0], np.cumsum(away**2)])
        mean = total[:-1] / (CAUTION + count)
        second = (0.25 + squares[:-1]) / (1 + count)
        bets = np.clip(mean / second, 0, LARGEST_BET / null)
        path = self.capital + np.cumsum(np.log1p(bets * away))
        self.n += len(worse)
        self.total, self.squares, self.capital = float(total[-1]), float(squares[-1]), float(path[-1])
        return path

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "n": self.n,
            "total": self.total,
            "squares": self.squares,
            "capital": self.capital,
        }


def _grid(budget: float) -> np.ndarray:
    """Ascending means of unit drops: the budget itself, and around it ever coarser, out to 0 and 1.

    Args:
        budget: as a share of the width, at most 1.
    """
    steps = np.geomspace(1e-5, 2.0, 120)
    drops = np.unique(np.clip(np.concatenate([budget - steps, [budget, 0.0], budget + steps]), -1, 1))
    return np.sort((1 - drops) / 2)
