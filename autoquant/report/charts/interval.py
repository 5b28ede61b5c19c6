"""A drop with its interval against the budget: the picture of a verdict.

Worse is to the right. What the budget allows is tinted from the left edge to the budget line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autoquant.report.charts.axis import Axis


@dataclass(frozen=True)
class Interval:
    """Pixels of one interval; `low` and `high` are None when no bound was asked for."""

    width: float
    zero: float
    budget: float
    point: float
    low: float | None
    high: float | None


def shared_axis(rows: Iterable[Mapping[str, Any]], budget: float, width: float) -> Axis:
    """One axis that holds zero, the budget and every bound, so that rows can be compared by eye.

    A hopeless map would squeeze the others to nothing, so the axis ends at four budgets; what is beyond
    sits at the edge.
    """
    values = [0.0, budget]
    for row in rows:
        values += [row[key] for key in ("drop", "lower_bound", "upper_bound") if row.get(key) is not None]
    unit = budget or max(abs(value) for value in values) or 1.0
    low, high = max(min(values), -4 * unit), min(max(values), 4 * unit)
    margin = 0.12 * (high - low) or unit
    return Axis(low - margin, high + margin, 0.0, width)


def interval(row: Mapping[str, Any], budget: float, axis: Axis) -> Interval | None:
    """None when the drop itself was not measured."""
    if row.get("drop") is None:
        return None
    low, high = row.get("lower_bound"), row.get("upper_bound")
    return Interval(
        width=axis.end,
        zero=axis.at(0.0),
        budget=axis.at(budget),
        point=axis.at(row["drop"]),
        low=None if low is None else axis.at(low),
        high=None if high is None else axis.at(high),
    )
