"""`autoquant list`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from autoquant.commands.options import takes

app = typer.Typer()


@app.command(name="list", epilog="[b]Example[/b]\n\nautoquant list schemes")
@takes("as_json")
def list_(
    what: Annotated[str, typer.Argument(help="schemes, tasks, spaces, runtimes, exports or strategies.")], **given: Any
) -> int:
    """What there is to choose from."""
    from autoquant.catalogue import catalogue

    rows = catalogue(what)
    if given["as_json"]:
        print(json.dumps(rows, indent=1))
    else:
        width = max(map(len, rows), default=0)
        for name, words in rows.items():
            print(f"{name:{width}}  {words}".rstrip())
    return 0
