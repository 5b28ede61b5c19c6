"""Commands that make a run folder, or go on from one: search, profile, pick, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autoquant import forkserver
from autoquant.commands.options import LAST, OPTIONS, SOURCE, Model, confidence_of, read, takes, was_typed
from autoquant.errors import UsageError
from autoquant.lazy import importing
from autoquant.values import Budget

app = typer.Typer()


@app.command(
    epilog="[b]Examples[/b]\n\n"
    "autoquant search --budget 0.01\n\n"
    "autoquant search ./my-reranker --task classification --data pairs.csv --budget 0.005\n\n"
    "autoquant search ./llm --task causal-lm --data text.txt --objective memory --max-minutes 30\n\n"
    "autoquant search ./my-model --data pairs.csv --max-mb 25\n\n"
    "autoquant search ./my-model --data pairs.csv --workers 4 --threads 16\n\n"
    "autoquant search ./my-model --data pairs.csv --storage postgresql+psycopg://me@host/studies\n\n"
    "autoquant search --resume runs/default-1"
)
@takes(*OPTIONS)
def search(ctx: typer.Context, model: Model = "default", **given: Any) -> int:
    """Search, certify and write the best quantization under a budget."""
    # A typing mistake is answered before seconds of imports.
    Budget(given["budget"], given["relative"], confidence_of(given["confidence"]))
    resume, changes = given.pop("resume"), {}
    if resume is not None:
        typed = {name: value for name, value in ctx.params.items() if was_typed(ctx, name)}
        changes = {name: typed.pop(name) for name in ("trials", "max_minutes", "workers", "storage") if name in typed}
        if others := [name for name in typed if name not in ("resume", "quiet", "as_json")]:
            raise UsageError(
                f"--resume takes its settings from the run folder; --{others[0].replace('_', '-')} cannot be changed there."
            )
    with forkserver.serving():  # it imports what this process does, at the same time
        with importing():
            from autoquant import api

        result = (
            api.search(model, **read(given)) if resume is None else api.resume(resume, quiet=given["quiet"], **changes)
        )
    show(result, given["as_json"])
    return result.exit_code


@app.command(epilog="[b]Example[/b]\n\nautoquant profile ./my-model --task sts --data pairs.csv")
@takes("task", "data", "space", *SOURCE, "eval_batch_size", "threads", "no_smooth", "no_grad", "device", "seed", "out",
       *LAST)  # fmt: skip
def profile(model: Model = "default", **given: Any) -> int:
    """Only the sensitivity of each layer to each scheme, and its page."""
    with importing():
        from autoquant import api

    show(api.profile(model, **read(given)), given["as_json"])
    return 0


@app.command(epilog="[b]Example[/b]\n\nautoquant pick runs/default-1 --budget 0.005")
@takes("confidence", "quiet", "as_json")
def pick(
    run: Annotated[Path, typer.Argument(help="The folder of a finished search.")],
    budget: Annotated[float, typer.Option(help="Allowed drop, in the unit of the search's own budget.")],
    **given: Any,
) -> int:
    """Certify another point of a search's front, for another budget, without searching again."""
    confidence = confidence_of(given["confidence"])
    Budget(budget, confidence=confidence)
    with forkserver.serving():
        with importing():
            from autoquant import api

        result = api.pick(run, budget, confidence=confidence, quiet=given["quiet"])
    show(result, given["as_json"])
    return result.exit_code


@app.command(epilog="[b]Example[/b]\n\nautoquant report runs/default-1")
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> int:
    """Render the report of a run again."""
    with importing():
        from autoquant import api

    print(api.report(run))
    return 0


def show(result: Any, as_json: bool) -> None:
    if as_json:
        print((result.folder / "report.json").read_text(encoding="utf8"), end="")
        return
    from rich.console import Console

    from autoquant.report import render_terminal

    render_terminal(dict(result.report), Console(), folder=str(result.folder))
