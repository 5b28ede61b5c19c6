"""The last screen of a run: the verdict, before and after, where the files are and what to type next.

Names come from models and files, so they are given to rich as `Text` or escaped: a layer called `[red]` stays itself.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autoquant.report import humanize
from autoquant.report.charts.bars import model_name
from autoquant.report.schema import CHOICES, is_run, validate
from autoquant.report.sentence import sentence, speedup

COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}
SCHEMES_SHOWN = 5


def render_terminal(report: dict[str, Any], console: Console, folder: str = "") -> None:
    """Print the summary.

    Args:
        folder: where the run's files are, as the user typed it; paths in the report are relative to it.

    Raises:
        CheckpointError: a key is missing or of the wrong type.
    """
    validate(report)
    said = report.get("sentence") or sentence(report)
    verdict = Text(said)
    console.print()
    if is_run(report):
        verdict.stylize(f"bold {COLOURS[report['verdict']]}", 0, len(report["verdict"]))
    console.print(verdict)
    console.print()
    if is_run(report):
        console.print(Padding(_before_after(report), (0, 0, 0, 2)))
        console.print()
        for row, scheme in enumerate(_schemes(report["schemes"])):
            _line(console, "" if row else "Schemes", scheme)
    for name, path in (report.get("files") or {}).items():
        _line(console, name.replace("_", " ").capitalize(), _path(folder, path))
    for note in report.get("notes") or []:
        _line(console, "Note", note)
    if report.get("load"):
        _block(console, "Load it", report["load"])
    commands = report.get("next") or _fallback(report, folder)
    if commands:
        _block(console, "Next", "\n".join(commands))


def _before_after(report: dict[str, Any]) -> Table:
    """Rows of figures, a column a model; the shipped one is bold."""
    metric = report["metric"]
    known = [which for which in CHOICES if which != "half" or report["latency_ms"].get("half") is not None]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for which in known:
        style = "bold" if which == report["shipped"] else ""
        table.add_column(escape(model_name(report, which)), justify="right", style=style, header_style=style)
    values = {"float32": metric["float"], "half": metric.get("half"), "quantized": metric["quantized"]}
    rows = [
        (metric["name"], [humanize.metric(values[which]) for which in known]),
        ("latency", [humanize.ms(report["latency_ms"].get(which)) for which in known]),
        ("speed-up", [humanize.times(speedup(report, which, "float32")) for which in known]),
        ("size", [humanize.size(report["bytes"].get(which)) for which in known]),
    ]
    peak = report.get("peak_memory_bytes") or {}
    if any(peak.get(which) is not None for which in known):
        rows.append(("peak memory", [humanize.size(peak.get(which)) for which in known]))
    for name, cells in rows:
        table.add_row(Text(name, style="dim"), *(Text(cell) for cell in cells))
    return table


def _schemes(schemes: dict[str, int]) -> list[str]:
    """One line a scheme, the commonest first; a long tail is counted, because the page lists it."""
    rows = sorted(schemes.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{name} on {humanize.plural(layers, 'layer')}" for name, layers in rows[:SCHEMES_SHOWN]]
    rest = rows[SCHEMES_SHOWN:]
    if rest:
        lines.append(f"{len(rest)} more on {humanize.plural(sum(layers for _, layers in rest), 'layer')}")
    return lines


def _line(console: Console, name: str, text: str) -> None:
    # The colon is part of the label so that a copied line still reads well.
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(width=12, style="dim")
    table.add_column(overflow="fold")
    table.add_row(Text(name), Text(text))
    console.print(Padding(table, (0, 0, 0, 2)))


def _block(console: Console, title: str, body: str) -> None:
    """Lines to copy: never wrapped by rich, which would break them."""
    console.print()
    console.print(Text(f"  {title}", style="dim"))
    for line in body.splitlines():
        console.print(Text(f"    {line}"), soft_wrap=True)


def _path(folder: str, path: str) -> str:
    return str(PurePath(folder) / path) + ("/" if path.endswith("/") else "") if folder else path


def _fallback(report: dict[str, Any], folder: str) -> list[str]:
    """Reading the page is always a sensible next step, and this command is there wherever Python is."""
    page = (report.get("files") or {}).get("report")
    return [f"python -m webbrowser {_path(folder, page)}"] if page else []
