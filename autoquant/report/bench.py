"""What `autoquant bench` found: in sentences, on the terminal, and as a page that needs nothing else."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoquant.report import humanize, tables
from autoquant.report.charts.lines import LATENCY, THROUGHPUT, group_name, lines
from autoquant.report.render import asset, environment

KINDS = {
    "text": "text, random token ids",
    "causal-lm": "prefill of random token ids: logits of every position, no cache",
    "images": "random pixels",
}
COLUMNS = (
    tables.Column("Threads", "", "num", tables.number("threads", humanize.count)),
    tables.Column("Tokens", "length of each row", "num", tables.number("seq_len", humanize.count)),
    tables.Column("Batch", "rows of one call", "num", tables.number("batch_size", humanize.count)),
    tables.Column("p50 ms", "median of all calls", "num", tables.number("p50_ms", humanize.significant)),
    tables.Column("p90 ms", "one call in ten is slower", "num", tables.number("p90_ms", humanize.significant)),
    tables.Column(
        "p99 ms",
        "one call in a hundred is slower; from 100 calls up",
        "num",
        tables.number("p99_ms", humanize.significant),
    ),
    tables.Column("± %", "how far rounds of this shape disagree", "num", lambda one: _noise(one)),
    tables.Column("items/s", "at the median", "num", tables.number("items_per_s", humanize.significant)),
    tables.Column("tokens/s", "at the median", "num", tables.number("tokens_per_s", humanize.significant)),
    tables.Column(
        "peak MB",
        "most memory of a process that loaded the model and ran all shapes up to this one",
        "num",
        tables.number("peak_memory_bytes", humanize.megabytes),
    ),
)


def bench_sentences(found: dict[str, Any]) -> list[str]:
    """One for each number of threads and length: the best batch size, or why it cannot be told."""
    return [f"{group_name(one['threads'], one['seq_len'])}: {_best(one, found)}" for one in found["best"]]


def render_bench_terminal(found: dict[str, Any], console: Console) -> None:
    """Print the table and the sentences."""
    shown = tables.table(COLUMNS, found["points"])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in shown.columns:
        table.add_column(column.title, justify="right")
    for row in shown.rows:
        table.add_row(*(Text(cell.text) for cell in row.cells))
    console.print(table)
    console.print()
    for line in bench_sentences(found):
        console.print(Text(line), soft_wrap=True)
    if found["noisy"]:
        console.print(Text("The machine was busy: run it again when nothing else does.", style="yellow"))


def render_bench_html(found: dict[str, Any]) -> str:
    """One HTML file: the sentences, throughput and latency against batch size, the table."""
    page = environment().get_template("bench.html.j2")
    facts = (found["hardware"], KINDS[found["kind"]], f"{humanize.size(found['bytes'])} on disk", found["created"])
    return page.render(
        title=f"{found['checkpoint']} – speed",
        facts=facts,
        noisy=found["noisy"],
        sentences=bench_sentences(found),
        plots=[lines(found["points"], quantity) for quantity in (THROUGHPUT, LATENCY)],
        table=tables.table(COLUMNS, found["points"]),
        style=Markup(asset("report.css") + asset("bench.css")),
        script=asset("report.js"),
    )


def _best(one: dict[str, Any], found: dict[str, Any]) -> str:
    if one["reason"]:
        return f"the best batch size cannot be told, because {one['reason']}."
    said = f"batch {one['batch_size']} gives most, {humanize.significant(one['items_per_s'])} items/s"
    if one["like"]:
        said += f" (batch {_listed(one['like'])} cannot be told from it)"
    if one["open_ended"]:
        return f"{said}; throughput still rises there."
    return said + (
        f"; batch {one['saturates_at']} gives 95% of it." if one["saturates_at"] != one["batch_size"] else "."
    )


def _listed(sizes: list[int]) -> str:
    *first, last = map(str, sizes)
    return f"{', '.join(first)} and {last}" if first else last


def _noise(one: dict[str, Any]) -> tables.Cell:
    return tables.Cell(f"{100 * one['noise']:.1f}" + ("!" if one["noisy"] else ""), one["noise"])
