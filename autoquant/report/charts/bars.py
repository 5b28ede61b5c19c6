"""Before and after: one card a cost, one bar a model, scaled to the largest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autoquant.report import humanize
from autoquant.report.schema import CHOICES
from autoquant.report.sentence import ratio
from autoquant.values import FLOAT_DTYPES


@dataclass(frozen=True)
class Bar:
    label: str
    value: str
    noise: str
    ratio: str
    width: float
    shipped: bool


@dataclass(frozen=True)
class Card:
    title: str
    hint: str
    bars: tuple[Bar, ...]


def cards(report: dict[str, Any]) -> list[Card]:
    """Latency, size and peak memory; a cost that was not measured has no card."""
    shape = report.get("shape") or {}
    where = f"batch {shape['batch_size']} × {shape['seq_len']}" if {"batch_size", "seq_len"} <= set(shape) else ""
    made = [
        _card(report, "latency_ms", "Latency", where, humanize.ms, faster=True),
        _card(report, "bytes", "Checkpoint size", "bytes on disk", humanize.size),
        _card(report, "peak_memory_bytes", "Peak memory", "of inference", humanize.size),
    ]
    return [card for card in made if card.bars]


def _card(
    report: dict[str, Any], key: str, title: str, hint: str, show: Callable[[float | None], str], faster: bool = False
) -> Card:
    figures = report.get(key) or {}
    noise = (report.get("latency_noise_ms") or {}) if faster else {}
    known = [which for which in CHOICES if figures.get(which) is not None]
    largest = max((figures[which] for which in known), default=0) or 1
    return Card(
        title,
        hint,
        tuple(
            Bar(
                label=model_name(report, which),
                value=show(figures[which]),
                noise=f"± {humanize.significant(noise[which], 2)}" if noise.get(which) is not None else "",
                ratio=_against_float(figures, which, faster),
                width=round(100 * figures[which] / largest, 1),
                shipped=which == report["shipped"],
            )
            for which in known
        ),
    )


def _against_float(figures: dict[str, Any], which: str, faster: bool) -> str:
    """`2.10× as fast` for a latency, `0.26×` for bytes; float32 itself is the measure."""
    if which == "float32":
        return ""
    value = ratio(figures, "float32", which) if faster else ratio(figures, which, "float32")
    return "" if value is None else humanize.times(value) + (" as fast" if faster else "")


def model_name(report: dict[str, Any], which: str) -> str:
    """What a column or bar is called: a map without quantization is not called quantized, it only runs on our kernels."""
    if which == "quantized" and report.get("schemes") and set(report["schemes"]) <= set(FLOAT_DTYPES):
        return f"{report['base_dtype']}, by autoquant"
    return report["half_dtype"] if which == "half" else which
