"""What the benchmarks share: where models and data are, plain tables, JSON, and what machine this is."""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

SECONDS = 0.3
"""Of timing for each checkpoint in a round."""
MODELS = Path("~/.cache/autoquant-dev-models").expanduser()
DATA_VARIABLE = "AUTOQUANT_DEV_DATA"
ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("AUTOQUANT_STATE", "none")  # a benchmark that is run again is no second look at its data

if str(ROOT) not in sys.path:  # a checkout that is not installed
    sys.path.insert(0, str(ROOT))


def parser(description: str, *, threads: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments of every benchmark; without `threads`, the benchmark has its own --threads."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    found.add_argument("--models", type=Path, default=MODELS, metavar="FOLDER", help="folder of the development models")
    found.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get(DATA_VARIABLE) or ROOT.parent / "shared" / "data"),
        metavar="FOLDER",
        help=f"folder of the development data; the environment variable {DATA_VARIABLE} sets the default",
    )
    if threads:
        found.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of torch")
    found.add_argument("--seed", type=int, default=0, help="seed of splits, probes and random maps")
    found.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return found


def need(*paths: Path) -> None:
    """Exit with what is missing and which argument says where it is."""
    for path in paths:
        if not path.exists():
            sys.exit(f"{path} is not there. Say where the models and the data are: --models FOLDER --data FOLDER.")


def time_checkpoints(
    places: Mapping[Any, tuple[Path, Mapping[str, str]]], shape: Mapping[str, Any], args: argparse.Namespace
) -> dict[Any, list[float]]:
    """Median ms of each round of each checkpoint, loaded by `autoquant.load` in a process of its own.

    All take turns, in a new order each round; the others wait on a pipe.

    Args:
        places: key → checkpoint folder, and variables of its process's environment.
        args: with `threads`, `rounds`, `seed`.
    """
    from autoquant.bench.processes import Worker

    request = {"batch_size": shape["batch_size"], "seq_len": shape.get("seq_len")}
    with ExitStack() as stack:
        workers = {}
        for key, (path, environment) in places.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autoquant-timing-")))
            workers[key] = stack.enter_context(Worker(path, args.threads, folder, environment=environment))
        for worker in workers.values():
            worker.ask("prepare", **request)
        times: dict[Any, list[float]] = {key: [] for key in workers}
        draw = random.Random(args.seed)
        for _ in range(args.rounds):
            for key in draw.sample(list(workers), len(workers)):
                times[key].append(statistics.median(workers[key].ask("round", seconds=SECONDS, **request)["ms"]))
    return times


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as a plain table, numbers to the right."""
    rows = list(rows)
    cells = [list(columns), *([show(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    right = [all(isinstance(row.get(name), int | float | type(None)) for row in rows) for name in columns]

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * width for width in widths), *map(line, cells[1:])])


def show(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def write(path: Path | None, content: Mapping[str, Any]) -> None:
    """`content` and the machine as JSON, if a path is given."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n", encoding="utf8")
        print(f"\nwritten: {path}")


def machine() -> dict[str, Any]:
    import torch

    from autoquant.runtimes import TorchRuntime
    from autoquant.session import now, versions

    return {
        "date": now(),
        "hardware": TorchRuntime().description(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
