"""Rows for people: one plain table, and one Markdown table a model."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common import show
from benchmarks.peers.measure import Row

COLUMNS = ("model", "shape", "threads", "engine", "ms", "±", "x fp32", "MB", "peak MB", "error", "drop", "note")


def plain(row: Row) -> Row:
    """A row under the columns' names."""
    return {
        **{name: row.get(name) for name in ("model", "shape", "threads", "engine", "ms", "error", "drop")},
        "±": row.get("spread"),
        "x fp32": row.get("x"),
        "MB": _mega(row.get("bytes")),
        "peak MB": _mega(row.get("peak_bytes")),
        "note": row.get("note", ""),
    }


def markdown(rows: Sequence[Row]) -> str:
    """For each model: engines down, shapes across, `ms ± spread (times fp32)`; the best of a column in bold."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        places = list(dict.fromkeys((row["shape"], row["threads"]) for row in own))
        best = {place: min((row["ms"] for row in own if _place(row) == place and "ms" in row), default=None)
                for place in places}  # fmt: skip
        heads = [f"{shape}, {threads} thr." for shape, threads in places]
        lines = [f"**{model}**\n", _line(["engine", *heads, "MB", "peak MB", "error", "drop"])]
        lines.append(_line(["---"] * (len(heads) + 5)))
        for engine in dict.fromkeys(row["engine"] for row in own):
            of_engine = {_place(row): row for row in own if row["engine"] == engine}
            cells = [_cell(of_engine.get(place), best[place]) for place in places]
            sizes = [_range(of_engine.values(), key, 1e6) for key in ("bytes", "peak_bytes")]
            ends = [_range(of_engine.values(), key, 1) for key in ("error", "drop")]
            lines.append(_line([engine, *cells, *sizes, *ends]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _place(row: Row) -> tuple[str, int]:
    return row["shape"], row["threads"]


def _cell(row: Row | None, best: float | None) -> str:
    if row is None:
        return "–"
    if "ms" not in row:
        return row.get("note", "–").replace("|", "/")
    times = f"{row['x']:.2f}×" if "x" in row else "–"
    text = f"{row['ms']:.3g} ± {row['spread']:.2g} ({times})"
    return f"**{text}**" if row["ms"] == best else text


def _range(rows: object, key: str, unit: float) -> str:
    """Smallest to largest over the shapes."""
    values = sorted({float(f"{row[key] / unit:.3g}") for row in rows if row.get(key) is not None})  # type: ignore[attr-defined]
    if not values:
        return "–"
    return show(values[0]) if len(values) == 1 else f"{show(values[0])} – {show(values[-1])}"


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
