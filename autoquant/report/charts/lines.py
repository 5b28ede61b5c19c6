"""A quantity against the batch size: one line for each number of threads and length, batch sizes evenly apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autoquant.report import humanize
from autoquant.report.charts.axis import Axis, Frame, Tick, ticks

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 24, 44
FRAME = Frame(WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM)
COLOURS = 6
"""Lines that have a colour of their own; `bench.css` defines l0 to l5."""


@dataclass(frozen=True)
class Dot:
    """`low` and `high`: ends of the whisker, pixels; `hollow`: too noisy to be believed."""

    x: float
    y: float
    low: float
    high: float
    hollow: bool
    tip: str


@dataclass(frozen=True)
class Line:
    name: str
    colour: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Lines:
    title: str
    y_title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    frame: Frame = FRAME


@dataclass(frozen=True)
class Quantity:
    """What is drawn: its value, and its least and largest likely one, of a point."""

    title: str
    y_title: str
    value: Callable[[dict[str, Any]], float]
    low: Callable[[dict[str, Any]], float]
    high: Callable[[dict[str, Any]], float]


THROUGHPUT = Quantity(
    "Throughput",
    "items per second (whiskers: how far rounds of one shape disagree)",
    lambda one: one["items_per_s"],
    lambda one: one["items_per_s"] * (1 - one["noise"]),
    lambda one: one["items_per_s"] * (1 + one["noise"]),
)
LATENCY = Quantity(
    "Latency",
    "ms a batch, median (whiskers: up to the 90th percentile)",
    lambda one: one["p50_ms"],
    lambda one: one["p50_ms"],
    lambda one: one["p90_ms"],
)


def lines(points: Sequence[dict[str, Any]], quantity: Quantity) -> Lines:
    """The picture of one quantity of all points."""
    sizes = sorted({one["batch_size"] for one in points})
    x = Axis(math.log2(sizes[0]) - 0.25, math.log2(sizes[-1]) + 0.25, LEFT, WIDTH - RIGHT)
    top = max(quantity.high(one) for one in points)
    y = Axis(0.0, 1.06 * top, HEIGHT - BOTTOM, TOP)
    groups: dict[tuple[int, int | None], list[dict[str, Any]]] = {}
    for one in points:
        groups.setdefault((one["threads"], one["seq_len"]), []).append(one)
    return Lines(
        title=quantity.title,
        y_title=quantity.y_title,
        lines=tuple(
            _line(number, key, sorted(group, key=lambda one: one["batch_size"]), quantity, x, y)
            for number, (key, group) in enumerate(groups.items())
        ),
        x_ticks=tuple(Tick(x.at(math.log2(size)), str(size)) for size in sizes),
        y_ticks=tuple(Tick(y.at(value), f"{value:,.6g}") for value in ticks(y.low, y.high, 5)),
    )


def group_name(threads: int, seq_len: int | None) -> str:
    """`2 threads, 128 tokens`."""
    return humanize.plural(threads, "thread") + (f", {humanize.plural(seq_len, 'token')}" if seq_len else "")


def _line(
    number: int, key: tuple[int, int | None], group: list[dict[str, Any]], quantity: Quantity, x: Axis, y: Axis
) -> Line:
    dots = tuple(
        Dot(
            x=x.at(math.log2(one["batch_size"])),
            y=y.at(quantity.value(one)),
            low=y.at(quantity.low(one)),
            high=y.at(quantity.high(one)),
            hollow=one["noisy"],
            tip=_tip(one),
        )
        for one in group
    )
    path = "M" + "L".join(f"{dot.x},{dot.y}" for dot in dots)
    return Line(group_name(*key), f"l{number % COLOURS}", path, dots)


def _tip(one: dict[str, Any]) -> str:
    rows = [
        f"batch {one['batch_size']}, {group_name(one['threads'], one['seq_len'])}",
        f"{humanize.ms(one['p50_ms'])}, 90th percentile {humanize.ms(one['p90_ms'])}",
        f"{humanize.significant(one['items_per_s'])} items/s",
        f"peak memory {humanize.size(one['peak_memory_bytes'])}",
    ]
    return "\n".join([*rows, "too noisy to be believed"] if one["noisy"] else rows)
