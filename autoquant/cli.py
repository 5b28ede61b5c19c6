"""The command line: its commands from a table, and what becomes of their errors. No logic.

Heavy imports happen inside the commands, so that `--help` and usage errors answer at once.
"""

from __future__ import annotations

import os
import sys
import traceback

import typer

from autoquant.commands import bench, catalogue, certify, checkpoints, search, worker
from autoquant.errors import AutoquantError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The fastest and smallest per-layer quantization of a transformer within an accuracy budget, proved on data "
    "that the search never saw.",
    epilog="Exit codes: 0 pass · 1 error · 2 usage · 3 no map meets the budget · 4 inconclusive · 130 interrupted.",
)

for module in (search, worker, checkpoints, bench, certify, catalogue):
    app.add_typer(module.app)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors are one message on stderr, never a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = app(args=arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except AutoquantError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own: a misspelt command or option
            error.show()
            return error.exit_code
        if os.environ.get("AUTOQUANT_DEBUG"):
            traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        print("This is a bug, or a broken installation. AUTOQUANT_DEBUG=1 shows where it happened.", file=sys.stderr)
        return 1
