"""One HTML file that needs nothing else: no network, no fonts, no scripts but its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from autoquant.report import humanize, tables
from autoquant.report.charts.bars import cards, model_name
from autoquant.report.charts.heatmap import heatmap, split_name
from autoquant.report.charts.interval import Interval, interval, shared_axis
from autoquant.report.charts.tradeoff import tradeoffs
from autoquant.report.facts import facts
from autoquant.report.schema import CHOICES, is_run, validate
from autoquant.report.sentence import sentence

INTERVAL_WIDTH = 400
UNBROKEN = 40
"""Longest part of a name that is kept on one line, in characters."""


@dataclass(frozen=True)
class Share:
    """A scheme's part of the model: how many layers, and the share of their weights."""

    scheme: str
    layers: int
    percent: float
    percent_text: str


@dataclass(frozen=True)
class RungView:
    label: str
    status: str
    drop: str
    upper: str
    n: str
    interval: Interval | None
    shipped: bool


@dataclass(frozen=True)
class SkippedView:
    type: str
    reason: str
    params: str
    names: tuple[str, ...]


def render_html(report: dict[str, Any]) -> str:
    """The page of a full run or of a profile.

    Raises:
        CheckpointError: a key is missing or of the wrong type.
    """
    validate(report)
    return environment().get_template("report.html.j2").render(_view(report))


def environment() -> Environment:
    """Templates of the package; a name that is not there is an error."""
    found = Environment(
        loader=PackageLoader("autoquant.report"),
        autoescape=True,  # not select_autoescape: it decides by the extension, and .j2 would not be escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["breakable"] = _breakable
    return found


def _view(report: dict[str, Any]) -> dict[str, Any]:
    run = is_run(report)
    said = report.get("sentence") or sentence(report)
    verdict = report["verdict"] if run else ""
    view = {
        "report": report,
        "run": run,
        "verdict": verdict,
        "said": said.removeprefix(verdict),
        "subtitle": _subtitle(report),
        "heatmap": heatmap(report["layers"]),
        "layers": tables.table(tables.LAYERS, report["layers"]),
        "skipped": _skipped(report.get("skipped") or []),
        "facts": facts(report),
        "notes": report.get("notes") or [],
        "output_error": (report.get("profile") or {}).get("method") == "output-error",
        "style": asset("report.css"),
        "script": asset("report.js"),
    }
    return {**view, **(_run_view(report) if run else {})}


def _run_view(report: dict[str, Any]) -> dict[str, Any]:
    budget, metric, search = report["budget"], report["metric"], report.get("search")
    model_of = {"float32": "float32", "half": report["half_dtype"]}
    return {
        "cards": cards(report),
        "metric": metric,
        "metric_values": [
            (model_name(report, which), humanize.metric(value), which == report["shipped"])
            for which, value in zip(CHOICES, (metric["float"], metric.get("half"), metric["quantized"]), strict=True)
            if value is not None
        ],
        "interval": interval(metric, budget["drop"], shared_axis([metric], budget["drop"], INTERVAL_WIDTH)),
        "bounds": _bounds(report),
        "budget_text": humanize.budget(budget["drop"], budget["relative"]),
        "shares": _shares(report),
        "runs": set(report["schemes"]) == {model_of.get(report["shipped"])} or report["shipped"] == "quantized",
        "tradeoffs": tradeoffs(report),
        "candidates": _candidates(report) if search else None,
        "rungs": _rungs(report),
        "load": report.get("load") or "",
        "files": report.get("files") or {},
        "commands": report.get("next") or [],
    }


def _candidates(report: dict[str, Any]) -> tables.Table:
    columns = tables.candidate_columns(report["budget"], report["metric"]["higher_is_better"])
    return tables.table(columns, report["search"]["candidates"])


def _subtitle(report: dict[str, Any]) -> list[str]:
    model = report.get("model") or {}
    parts = [model.get("name"), model.get("params") and f"{humanize.params(model['params'])} parameters"]
    return [str(part) for part in (*parts, report.get("hardware"), report["created"]) if part]


def _bounds(report: dict[str, Any]) -> dict[str, str]:
    metric, budget = report["metric"], report["budget"]

    def show(value: float | None, towards: str = "nearest") -> str:
        return humanize.drop(value, budget["drop"], budget["relative"], towards)

    return {
        "drop": show(metric["drop"]),
        "lower": show(metric["lower_bound"], "down"),
        "upper": show(metric["upper_bound"], "up"),
        "word": "drop" if metric["higher_is_better"] else "rise",
        "confidence": "" if metric["confidence"] is None else humanize.percent(metric["confidence"]),
        "judged": humanize.plural(metric["n"], metric.get("item") or "item"),
    }


def _shares(report: dict[str, Any]) -> list[Share]:
    """Schemes by number of layers, with their share of the quantizable weights."""
    params: dict[str, int] = {}
    for layer in report["layers"]:
        if layer.get("scheme"):
            params[layer["scheme"]] = params.get(layer["scheme"], 0) + layer["params"]
    total = sum(params.values()) or 1
    rows = []
    for name, layers in report["schemes"].items():
        percent = 100 * params.get(name, 0) / total
        shown = "< 0.1%" if 0 < percent < 0.1 else f"{percent:.1f}%"
        rows.append(Share(name, layers, round(percent, 1), shown))
    return sorted(rows, key=lambda share: (-share.layers, share.scheme))


def _rungs(report: dict[str, Any]) -> list[RungView]:
    rungs, budget = report.get("certification") or [], report["budget"]
    axis = shared_axis(rungs, budget["drop"], INTERVAL_WIDTH)
    shipped = {one["label"] for one in (report.get("search") or {}).get("candidates", []) if one.get("shipped")}
    return [
        RungView(
            label=rung["label"],
            status=rung["status"],
            drop=humanize.drop(rung["drop"], budget["drop"], budget["relative"]),
            upper=humanize.drop(rung["upper_bound"], budget["drop"], budget["relative"], "up"),
            n=humanize.count(rung["n"]),
            interval=interval(rung, budget["drop"], axis),
            shipped=rung["label"] in shipped,
        )
        for rung in rungs
    ]


def _skipped(skipped: Iterable[dict[str, Any]]) -> list[SkippedView]:
    """One row for modules of one type that were skipped for one reason; a model has dozens of LayerNorms."""
    together: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in skipped:
        together.setdefault((one["type"], one["reason"]), []).append(one)
    return [
        SkippedView(
            kind, reason, humanize.params(sum(one["params"] for one in group)), tuple(one["name"] for one in group)
        )
        for (kind, reason), group in together.items()
    ]


def _breakable(text: str) -> Markup:
    """Escaped, with the places where a long name may break, and no others; copying it still gives the name.

    A layer breaks after its block (`bert.encoder.layer.0.`), or at any dot if it is in none; a scheme before its slash.
    """
    _, short = split_name(text)
    parts = [text[: -len(short)], short] if short != text else re.split(r"(?<=\.)(?=.)|(?=/)", text)
    kept = [Markup("<span class=w>{}</span>").format(part) if len(part) <= UNBROKEN else escape(part) for part in parts]
    return Markup("<wbr>").join(kept)


def asset(name: str) -> Markup:
    """A stylesheet or script that is shipped with the package, to be written into the page as it is."""
    return Markup((files("autoquant.report") / "templates" / name).read_text(encoding="utf8"))
