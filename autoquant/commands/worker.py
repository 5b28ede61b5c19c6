"""`autoquant worker`: help a search that another process, here or elsewhere, has begun."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autoquant.commands.options import takes
from autoquant.lazy import importing

app = typer.Typer()

EXAMPLES = (
    "[b]Examples[/b]\n\n"
    "autoquant worker /shared/runs/default-1\n\n"
    "autoquant worker ./copy-of-the-run --storage postgresql+psycopg://me:password@host/studies\n\n"
    "It may join and leave (Ctrl-C) at any time. The process that runs 'autoquant search' proposes and certifies."
)


@app.command(epilog=EXAMPLES)
@takes("threads", "quiet")
def worker(
    run: Annotated[Path, typer.Argument(help="The run folder of the search: shared, or a copy of it.")],
    storage: Annotated[
        str | None, typer.Option(help="As the search was given it. AUTOQUANT_STORAGE holds it, too.")
    ] = None,
    name: Annotated[str | None, typer.Option("--as", hidden=True)] = None,
    **given: Any,
) -> int:
    """Judge maps for a search that runs elsewhere, until it ends."""
    with importing():
        from autoquant import api
        from autoquant.search import leave_with_parent

    if name is not None:
        leave_with_parent()
    count, ended = api.worker(run, storage=storage, name=name, **given)
    if name is None:
        print(f"{count} maps judged; the search has ended: {ended}")
    return 0
