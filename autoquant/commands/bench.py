"""`autoquant bench`: how fast a checkpoint is at many shapes, and whether this machine can tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from autoquant.commands.options import LAST, counts, takes
from autoquant.lazy import importing
from autoquant.values import EXIT_CODES

app = typer.Typer()


@app.command(
    epilog="[b]Examples[/b]\n\n"
    "autoquant bench runs/default-1/checkpoint --out bench.html\n\n"
    "autoquant bench ./my-model --batch-sizes 1,8,32 --seq-lens 16,128 --threads 1,2 --json\n\n"
    "Exit code 4: the machine was too noisy to tell which batch size is best."
)
@takes(*LAST)
def bench(
    checkpoint: Annotated[
        str, typer.Argument(help="Any checkpoint, float or quantized: folder, hub id, or 'default'.")
    ],
    batch_sizes: Annotated[str, typer.Option(help="Rows a call, separated by commas.")] = "1,2,4,8,16,32",
    seq_lens: Annotated[
        str | None, typer.Option(help="Tokens a row, separated by commas. Default: 128. Not for images.")
    ] = None,
    threads: Annotated[str | None, typer.Option(help="CPU threads, separated by commas. Default: torch's.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of timing for each shape, at least.")] = 3.0,
    out: Annotated[Path | None, typer.Option(help="Write a page with pictures there (HTML).")] = None,
    **given: Any,
) -> int:
    """Latency, throughput, best batch size and memory at many shapes. Needs no task and no data."""
    # A typing mistake is answered before seconds of imports.
    lists = {"batch_sizes": batch_sizes, "seq_lens": seq_lens, "threads": threads}
    given |= {name: counts(text, f"--{name.replace('_', '-')}") for name, text in lists.items() if text is not None}
    with importing():
        from autoquant import measuring

    as_json = given.pop("as_json")
    given["quiet"] |= as_json
    found = measuring.bench(checkpoint, seconds=seconds, out=out, **given)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from rich.console import Console

        from autoquant.report import render_bench_terminal

        render_bench_terminal(found, Console())
        if out is not None:
            print(f"Page: {out}")
    return EXIT_CODES["INCONCLUSIVE"] if found["noisy"] else 0
