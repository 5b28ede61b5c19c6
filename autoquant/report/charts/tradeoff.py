"""Every candidate of the search: what it costs against how much it drops, with the front.

The front that is drawn is that of the two axes shown (candidates that none beats on both), because the search's own
front may weigh a third quantity and would not be a staircase here. Drops far beyond the budget are drawn at the upper
edge as triangles, so that they do not flatten what matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoquant.report import humanize
from autoquant.report.charts.axis import Axis, Frame, Tick, ticks
from autoquant.values import FLOAT_DTYPES

WIDTH, HEIGHT = 1180, 350
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 22, 44
FRAME = Frame(WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM)
CLIP = 2.0
"""Drops beyond this many budgets are drawn at the edge."""
PLACES = ((9, 4, "start"), (-9, 4, "end"), (0, 20, "middle"), (0, -12, "middle"))
"""Where a label may stand: its offset from the point and its anchor."""
GLYPH = 6.3
"""Width of a label's character in pixels, for keeping labels apart."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    mark: str
    clipped: bool
    tip: str


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    anchor: str
    text: str
    shipped: bool


@dataclass(frozen=True)
class Tradeoff:
    """Pixels of one plot; `marks` of points: shipped, feasible, infeasible, each with `-uniform` if enqueued."""

    key: str
    title: str
    x_title: str
    y_title: str
    points: tuple[Point, ...]
    labels: tuple[Label, ...]
    front: str
    budget: float
    budget_text: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    missing: int
    frame: Frame = FRAME


def tradeoffs(report: dict[str, Any]) -> list[Tradeoff]:
    """One plot a cost, that of the search's objective first; none when fewer than two candidates were measured."""
    search = report.get("search")
    if not search:
        return []
    made = [
        _tradeoff(report, "ms", "Latency", "latency, ms", 1.0),
        _tradeoff(report, "bytes", "Size", "checkpoint size, MB", 1e6),
    ]
    if any(word in str(search.get("objective", "")).lower() for word in ("byte", "size", "memory")):
        made.reverse()
    return [plot for plot in made if plot is not None]


def _tradeoff(report: dict[str, Any], key: str, title: str, x_title: str, unit: float) -> Tradeoff | None:
    budget, candidates = report["budget"], report["search"]["candidates"]
    drawn = [one for one in candidates if one["drop"] is not None and one[key] is not None]
    if len(drawn) < 2:
        return None
    x = _x_axis([one[key] / unit for one in drawn])
    y = _y_axis([one["drop"] for one in drawn], budget["drop"])
    # Drawn from least to most important, so that the shipped one lies on top.
    drawn.sort(key=lambda one: (bool(one.get("shipped")), bool(one.get("feasible"))))
    points = tuple(_point(one, x.at(one[key] / unit), y, report) for one in drawn)
    scale = 100 if budget["relative"] else 1
    fall = "drop" if report["metric"]["higher_is_better"] else "rise"
    return Tradeoff(
        key=key,
        title=title,
        x_title=x_title,
        y_title=f"{fall} of {report['metric']['name']} on the search split" + (", %" if budget["relative"] else ""),
        points=points,
        labels=tuple(_labels(drawn, points, y.at(budget["drop"]))),
        front=_front(points),
        budget=y.at(budget["drop"]),
        budget_text=f"budget {humanize.budget(budget['drop'], budget['relative'])}",
        x_ticks=tuple(Tick(x.at(value), f"{value:.6g}") for value in ticks(x.low, x.high, 7)),
        y_ticks=tuple(
            Tick(y.at(value), f"{value * scale:.6g}".replace("-", humanize.MINUS)) for value in ticks(y.low, y.high, 5)
        ),
        missing=len(candidates) - len(drawn),
    )


def _x_axis(values: list[float]) -> Axis:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * high or 1.0
    return Axis(low - margin, high + margin, LEFT, WIDTH - RIGHT)


def _y_axis(drops: list[float], budget: float) -> Axis:
    unit = budget or max(abs(drop) for drop in drops) or 1.0
    low = max(min([0.0, *drops]), -CLIP * unit)
    high = min(max([*drops, 1.15 * unit]), CLIP * unit)
    margin = 0.06 * (high - low)
    return Axis(low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _point(one: dict[str, Any], x: float, y: Axis, report: dict[str, Any]) -> Point:
    budget, fall = report["budget"], "drop" if report["metric"]["higher_is_better"] else "rise"
    mark = "shipped" if one.get("shipped") else "feasible" if one.get("feasible") else "infeasible"
    tip = [
        one["label"] + (" (shipped)" if one.get("shipped") else ""),
        f"{fall} {humanize.drop(one['drop'], budget['drop'], budget['relative'])}",
        f"{humanize.ms(one['ms'])} · {humanize.size(one['bytes'])}",
    ]
    if one.get("divergence") is not None:
        tip.append(
            f"divergence {humanize.score(one['divergence'])}, "
            f"predicted {humanize.score(one.get('predicted_divergence'))}"
        )
    tip += [str(one[key]) for key in ("reason",) if one.get(key)]
    uniform = one.get("origin") == "enqueued" and not one.get("shipped")
    return Point(x, y.at(one["drop"]), mark + ("-uniform" if uniform else ""), one["drop"] > y.high, "\n".join(tip))


def _front(points: tuple[Point, ...]) -> str:
    """SVG path of the staircase through the points that none beats on both axes."""
    lowest, path = float("inf"), ""
    for point in sorted((point for point in points if not point.clipped), key=lambda point: (point.x, -point.y)):
        height = -point.y  # SVG's y grows downwards: a smaller drop has a larger y
        if height < lowest:
            path += f"M{point.x},{point.y}" if not path else f"H{point.x}V{point.y}"
            lowest = height
    return path


def _labels(drawn: list[dict[str, Any]], points: tuple[Point, ...], budget: float) -> list[Label]:
    """Names of the shipped one, the plain dtypes and the uniform maps, where there is room for them.

    Greedy: the most important first, each at the first of four places that touches no label, point or budget line.
    The shipped one is named even where it is crowded.
    """
    order = sorted(
        (index for index, one in enumerate(drawn) if one.get("shipped") or one.get("origin") == "enqueued"),
        key=lambda index: (not drawn[index].get("shipped"), drawn[index]["label"] not in FLOAT_DTYPES),
    )
    taken: list[Box] = [(WIDTH - 110, budget - 16, WIDTH, budget + 2)]
    placed = []
    for index in order:
        one, point = drawn[index], points[index]
        text = f"{one['label']} – shipped" if one.get("shipped") else one["label"].removeprefix("uniform ")
        width = GLYPH * len(text)
        others = [(p.x - 4, p.y - 4, p.x + 4, p.y + 4) for i, p in enumerate(points) if i != index]
        crowded: tuple[Box, Label] | None = None  # where it is inside the picture at least
        for dx, dy, anchor in PLACES:
            x, y = point.x + dx, point.y + dy
            left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, y - 10, left + width, y + 3)
            if not (left > LEFT and left + width < WIDTH - 4 and y > TOP - 8 and y < HEIGHT - BOTTOM):
                continue
            label = Label(round(x, 1), round(y, 1), anchor, text, bool(one.get("shipped")))
            if not any(_overlap(box, other) for other in [*taken, *others]):
                taken.append(box)
                placed.append(label)
                break
            crowded = crowded or (box, label)
        else:
            if one.get("shipped"):
                middle = min(max(point.x, LEFT + width / 2), WIDTH - 4 - width / 2)
                aside = Label(round(middle, 1), round(point.y - 12, 1), "middle", text, True)
                box, label = crowded or ((middle - width / 2, point.y - 22, middle + width / 2, point.y - 9), aside)
                taken.append(box)
                placed.append(label)
    return placed


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
