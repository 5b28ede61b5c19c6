"""Layer × scheme: the score of every pair as a colour on a log scale, grouped by block and by weight scheme."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from autoquant.report import humanize

STEPS = 12
"""Colours of the scale; `report.css` defines h0 to h11."""
DECADES = 5
"""Scores this far below the largest share the palest colour: differences among harmless pairs decide nothing."""
BLOCK = re.compile(r"^(?:.*?\.)?(\d+)\.")
"""A layer name up to its first number: `bert.encoder.layer.0.` of `bert.encoder.layer.0.output.dense`."""


@dataclass(frozen=True)
class Column:
    scheme: str
    leaf: str
    first: bool


@dataclass(frozen=True)
class Row:
    """`marks`: per column the CSS classes of the cell, e.g. `h7`, `h7 on` (chosen), `none` (scheme does not fit)."""

    name: str
    short: str
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Heatmap:
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, int], ...]
    blocks: tuple[Block, ...]
    legend: tuple[str, str]
    tips: dict[str, Any]
    rows: int


def heatmap(layers: list[dict[str, Any]]) -> Heatmap | None:
    """None when no layer has a score."""
    schemes = list(dict.fromkeys(scheme for layer in layers for scheme in layer["scores"]))
    known = [score for layer in layers for score in layer["scores"].values() if score]
    if not schemes:
        return None
    high = max(known, default=1.0)
    low = max(min(known, default=1.0), high * 10.0**-DECADES)
    columns, groups = _columns(schemes)
    order = [column.scheme for column in columns]
    blocks: list[tuple[str, list[Row]]] = []
    for layer in layers:
        block, short = split_name(layer["name"])
        marks = tuple(_mark(layer, scheme, low, high) for scheme in order)
        if not blocks or blocks[-1][0] != block:  # the model's order is kept: a head after the blocks stays there
            blocks.append((block, []))
        blocks[-1][1].append(Row(layer["name"], short, marks))
    return Heatmap(
        columns=columns,
        groups=groups,
        blocks=tuple(Block(name, tuple(rows)) for name, rows in blocks),
        legend=(("≤ " if min(known, default=low) < low else "") + humanize.score(low), humanize.score(high)),
        tips={
            "schemes": order,
            "cells": {layer["name"]: [_tip(layer, scheme) for scheme in order] for layer in layers},
        },
        rows=len(layers),
    )


def split_name(name: str) -> tuple[str, str]:
    """Block and name within it: ("layer 0", "output.dense"); a layer outside every block is in ""."""
    found = BLOCK.match(name)
    if not found:
        return "", name
    parts = name[: found.end() - 1].split(".")
    return " ".join(parts[-2:]), name[found.end() :]


def _columns(schemes: list[str]) -> tuple[tuple[Column, ...], tuple[tuple[str, int], ...]]:
    """Schemes that share their weight part (before the slash) stand together under one heading."""
    families: dict[str, list[str]] = {}
    for scheme in schemes:
        families.setdefault(scheme.split("/")[0], []).append(scheme)
    columns: list[Column] = []
    groups: list[tuple[str, int]] = []
    for family, members in families.items():
        alone = len(members) == 1
        for index, scheme in enumerate(members):
            leaf = scheme if alone else scheme[len(family) + 1 :] or "weights only"
            # Neighbouring families of one member share an empty heading; only its first column gets the gap.
            first = index == 0 and not (alone and groups and not groups[-1][0])
            columns.append(Column(scheme, leaf, first))
        if alone and groups and not groups[-1][0]:
            groups[-1] = ("", groups[-1][1] + 1)
        else:
            groups.append(("" if alone else family, len(members)))
    return tuple(columns), tuple(groups)


def _mark(layer: dict[str, Any], scheme: str, low: float, high: float) -> str:
    if scheme not in layer["scores"]:
        return "none"
    score = layer["scores"][scheme]
    if score is None:
        mark = "void"
    elif score >= high:
        mark = f"h{STEPS - 1}"
    elif score <= low:
        mark = "h0"
    else:
        mark = f"h{int(math.log(score / low) / math.log(high / low) * STEPS)}"
    return f"{mark} on" if layer.get("scheme") == scheme else mark


def _tip(layer: dict[str, Any], scheme: str) -> list[str] | int:
    """Score, SQNR, ms and size as text; 0 where the scheme does not fit the layer."""
    if scheme not in layer["scores"]:
        return 0
    figures = [layer.get(key, {}).get(scheme) for key in ("sqnr_db", "ms", "bytes")]
    shown = [humanize.score(layer["scores"][scheme]), humanize.decibel(figures[0]), humanize.significant(figures[1])]
    shown.append(humanize.size(figures[2]))
    return ["" if text == humanize.MISSING else text for text in shown]
