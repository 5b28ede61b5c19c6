"""The tables of the page: which columns there are, what a cell says, and by what it is sorted.

A column whose every cell is empty is left out, so that a profile (which has no milliseconds) needs no second table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from autoquant.report import humanize

Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    text: str
    sort: float | str | None


@dataclass(frozen=True)
class Column:
    """`style`: CSS class of the column: `num`, `name`, `mono`, `wide` or none."""

    title: str
    hint: str
    style: str
    cell: Callable[[Record], Cell]


@dataclass(frozen=True)
class Row:
    cells: tuple[Cell, ...]
    shipped: bool


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def number(key: str, show: Callable[[float | None], str]) -> Callable[[Record], Cell]:
    return lambda record: Cell(show(record.get(key)), record.get(key))


def text(key: str) -> Callable[[Record], Cell]:
    return lambda record: Cell(str(record.get(key) or ""), str(record.get(key) or "").lower())


def _shape(record: Record) -> Cell:
    return Cell(" × ".join(f"{side:,}" for side in record["shape"]), record["params"])


def _weight_range(record: Record) -> Cell:
    low, high = record.get("weight_min"), record.get("weight_max")
    if low is None or high is None:
        return Cell(humanize.MISSING, None)
    return Cell(f"{humanize.significant(low, 2)} … {humanize.significant(high, 2)}", max(abs(low), abs(high)))


def _score(record: Record) -> Cell:
    """The chosen scheme's score; in a profile, where nothing is chosen, that of the worst scheme."""
    known = [score for score in record["scores"].values() if score is not None]
    value = record["score"] if "score" in record else max(known, default=None)
    return Cell(humanize.score(value), value)


def _megabytes_saved(count: float | None) -> str:
    return humanize.saved(None if count is None else count / 1e6)


def _yes(key: str) -> Callable[[Record], Cell]:
    def cell(record: Record) -> Cell:
        known = record.get(key)
        return Cell("", None) if known is None else Cell("yes" if known else "no", int(known))

    return cell


LAYERS = (
    Column("Layer", "name in the model", "name", text("name")),
    Column("Kind", "kind of module", "", text("kind")),
    Column("Shape", "out × in; sorts by the number of weights", "num", _shape),
    Column("Scheme", "the scheme chosen", "mono", text("scheme")),
    Column(
        "Score",
        "divergence that this layer alone adds, nats per output (worst scheme if none is chosen)",
        "num",
        _score,
    ),
    Column("SQNR", "signal to quantization noise of the layer's output, dB", "num", number("sqnr", humanize.decibel)),
    Column("ms saved", "against float32, measured alone", "num", number("ms_saved", humanize.saved)),
    Column("MB saved", "against float32, scales included", "num", number("bytes_saved", _megabytes_saved)),
    Column("Weights", "smallest … largest weight; sorts by magnitude", "num", _weight_range),
    Column(
        "Rows",
        "largest row range over the median one; 1 when all rows are alike",
        "num",
        number("channel_range_ratio", lambda value: humanize.significant(value, 2)),
    ),
    Column(
        "Kurt.",
        "excess kurtosis of the weights; 0 for a Gaussian",
        "num",
        number("weight_kurtosis", lambda value: humanize.significant(value, 2)),
    ),
    Column(
        "Input",
        "largest absolute input on the calibration data",
        "num",
        number("input_absmax", lambda value: humanize.significant(value, 2)),
    ),
    Column(
        "Outlier",
        "largest input over the 99.9th percentile",
        "num",
        number("outlier_ratio", lambda value: humanize.significant(value, 2)),
    ),
    Column("Why", "why this scheme", "wide", text("why")),
)


def candidate_columns(budget: dict[str, Any], higher_is_better: bool) -> tuple[Column, ...]:
    fall = "Drop" if higher_is_better else "Rise"

    def show_drop(value: float | None) -> str:
        return humanize.drop(value, budget["drop"], budget["relative"])

    return (
        Column("#", "trial number", "num", number("number", humanize.count)),
        Column("Candidate", "", "name", text("label")),
        Column(
            "From",
            "enqueued: always tried; fallback: safer than the best; proposed: by the strategy",
            "",
            text("origin"),
        ),
        Column("Base", "dtype of everything that is not quantized", "mono", text("base_dtype")),
        Column("ms", "latency at the shape of this run", "num", number("ms", humanize.significant)),
        Column("MB", "bytes of the checkpoint", "num", number("bytes", humanize.megabytes)),
        Column(fall, "measured on the search split", "num", number("drop", show_drop)),
        Column("Divergence", "measured, nats per output", "num", number("divergence", humanize.score)),
        Column(
            "Predicted",
            "divergence that the surrogate predicted",
            "num",
            number("predicted_divergence", humanize.score),
        ),
        Column("Feasible", "within the budget on the search split", "", _yes("feasible")),
        Column("Front", "on the search's front", "", _yes("on_front")),
        Column("Certified", "on the certification split", "", text("certified")),
        Column("State", "of the trial", "", text("state")),
        Column("Reason", "", "wide", text("reason")),
    )


def table(columns: Iterable[Column], records: list[Record]) -> Table:
    columns = tuple(columns)
    grid = [[column.cell(record) for column in columns] for record in records]
    kept = [i for i in range(len(columns)) if any(row[i].text not in ("", humanize.MISSING) for row in grid)]
    return Table(
        tuple(columns[i] for i in kept),
        tuple(
            Row(tuple(row[i] for i in kept), bool(record.get("shipped")))
            for row, record in zip(grid, records, strict=True)
        ),
    )
