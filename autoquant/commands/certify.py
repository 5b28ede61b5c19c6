"""`autoquant certify`: judge a checkpoint on data, or keep judging it on data that come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from autoquant import forkserver
from autoquant.commands.options import read, takes
from autoquant.errors import UsageError
from autoquant.lazy import importing
from autoquant.values import EXIT_CODES, Budget

app = typer.Typer()

EXAMPLES = (
    "[b]Examples[/b]\n\n"
    "autoquant certify runs/default-1/checkpoint --against default\n\n"
    "autoquant certify ./quantized --against ./model --task classification --data new.csv --budget 0.01\n\n"
    "autoquant certify ./quantized --against ./model --task fidelity --watch requests.jsonl\n\n"
    "Exit codes: 0 within the budget · 3 not within it, or alarm · 4 inconclusive · 1 error · 2 usage."
)


@app.command(epilog=EXAMPLES)
@takes(
    "task", "columns", "metric", "max_length", "eval_batch_size", "threads", "trust_remote_code", "quiet"
)  # fmt: skip
def certify(
    checkpoint: Annotated[str, typer.Argument(help="Any checkpoint or export, autoquant's or another tool's.")],
    against: Annotated[
        str | None, typer.Option(help="The float model it was made from. Default: as its layer map says.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled data, of which all are judged. Default: the embedded docstrings that were held out."
        ),
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Allowed drop. Default: as the layer map says, or 0.01.")] = None,
    relative: Annotated[bool | None, typer.Option("--relative", help="The budget is a share of the metric.")] = None,
    confidence: Annotated[
        str | None, typer.Option(help="Of the bound; 'none' judges the point estimate. Default: 0.95.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Column whose equal values mark items that are not independent.")
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option(help="certification=ITEMS: judge that many, chosen by chance.")
    ] = None,
    watch: Annotated[
        str | None, typer.Option(help="Keep judging lines that are appended to this jsonl file; '-' reads stdin.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="With --watch: stop at the end of the file.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="With --watch: where to go on after a stop. Default: a file of the user's.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the answer there as JSON; '-' is stdout.")
    ] = None,
    **given: Any,
) -> int:
    """Is a checkpoint within its budget, on data that nobody tuned on? One line, JSON and an exit code for CI."""
    Budget(0.01 if budget is None else budget)  # a typing mistake is answered before seconds of imports
    asked = read({**given, "sizes": sizes, "as_json": False, **_level(confidence)})
    asked |= {"against": against, "budget": budget, "relative": relative, "cluster": cluster}
    if watch is None:
        if once or state is not None:
            raise UsageError("--once and --state go with --watch FILE.")
        found, said = _once(checkpoint, data, asked)
    else:
        found, said = _watch(checkpoint, watch, data, once=once, state=state, asked=asked)
    if json_file is not None and str(json_file) != "-":
        from autoquant.artifacts import write_json

        write_json(json_file, found)
    print(json.dumps(found, indent=1) if str(json_file) == "-" else said)
    return EXIT_CODES[found["verdict"]]


def _once(checkpoint: str, data: str | None, asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    with forkserver.serving():  # it imports what this process does, at the same time
        with importing():
            from autoquant.comparison import certify
            from autoquant.report.verdict import verdict_line

        found = certify(checkpoint, data=data, **asked)
    return found, verdict_line(found)


def _watch(
    checkpoint: str, source: str, data: str | None, *, once: bool, state: Path | None, asked: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    if data is not None:
        raise UsageError("--watch reads its items from the file that it watches; leave --data out.")
    for name in ("sizes", "cluster", "relative"):
        if asked.pop(name):
            raise UsageError(f"--{name} does not go with --watch.")
    with importing():
        from autoquant.report.verdict import watch_line
        from autoquant.watching import watch

    found = watch(checkpoint, source, once=once, state=state, **asked)
    return found, watch_line(found)


def _level(confidence: str | None) -> dict[str, Any]:
    return {} if confidence is None else {"confidence": confidence}
