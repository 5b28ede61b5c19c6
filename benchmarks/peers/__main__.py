"""autoquant beside its peers: latency, bytes, memory, error of the output and drop of the metric, in one table."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.peers import tables
from benchmarks.peers.engines import ENGINES, REFERENCE
from benchmarks.peers.measure import Row, judge, measure
from benchmarks.peers.models import MODELS, Model
from benchmarks.peers.processes import FailedError, Setting


def arguments() -> Any:
    parser = common.parser(__doc__, threads=False)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of every engine, one after the other")
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=list(MODELS), help="models")
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", help="of the models' shapes; default: all")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), metavar="ENGINE", help=", ".join(ENGINES))
    parser.add_argument("--slow", action="store_true", help="also engines that take many minutes to build")
    parser.add_argument("--metric", action="store_true", help="also judge each engine by the model's task")
    parser.add_argument("--autoquant", nargs="+", default=[], metavar="MODEL=DIR", help="checkpoints of a search")
    parser.add_argument("--rounds", type=int, default=21, help="timed rounds of each engine")
    parser.add_argument("--quick", action="store_true", help="five rounds, minilm 1x16 and 8x128, one thread")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep what is built there, and use it again")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="what processes that run together may hold")
    parser.add_argument("--patience", type=float, default=3600.0, help="seconds until an engine is given up")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write Markdown tables there")
    args = parser.parse_args()
    if args.quick:
        args.only, args.threads, args.rounds = args.only[:1], args.threads[:1], 5
        args.shapes = args.shapes or ["1x16", "8x128"]
    known = {shape.name for name in args.only for shape in MODELS[name].shapes}
    if unknown := set(args.shapes or ()) - known:
        parser.error(f"unknown shapes {', '.join(sorted(unknown))}; these models have {', '.join(sorted(known))}")
    try:
        args.folders = checkpoints(args.autoquant)
    except ValueError as error:
        parser.error(str(error))
    return args


def checkpoints(given: list[str]) -> dict[str, dict[str, Path]]:
    """Model → name of a row → folder."""
    found: dict[str, dict[str, Path]] = {}
    for text in given:
        model, _, folder = text.partition("=")
        if model not in MODELS or not (Path(folder) / "config.json").is_file():
            raise ValueError(f"--autoquant {text}: MODEL must be one of {', '.join(MODELS)}, DIR a checkpoint folder")
        own = found.setdefault(model, {})
        own[f"autoquant-{len(own) + 1}" if own else "autoquant"] = Path(folder).resolve()
    return found


def engines_for(model: Model, args: Any) -> list[str]:
    """Rows of a model, the reference first; the uniform map stands in where no checkpoint of a search is given."""
    chosen = [name for name, engine in ENGINES.items() if args.slow or not engine.slow]
    if args.engines:
        chosen = [name for name in ENGINES if name in args.engines or name == REFERENCE]
    own = list(args.folders.get(model.name, {}))
    return [name for name in chosen if not own or name != "autoquant-uniform-int8-bf16"] + own


def run(model: Model, args: Any, work: Path, rows: list[Row]) -> None:
    """Add the model's rows to `rows`, one by one, so that an interruption leaves those that are done."""
    common.need(args.models / model.name)
    setting = Setting(
        args.models, args.data, work, args.folders.get(model.name, {}), args.rounds, args.seed,
        int(args.memory_gb * 1e9), args.patience,
    )  # fmt: skip
    names = engines_for(model, args)
    for shape in model.shapes:
        if args.shapes and shape.name not in args.shapes:
            continue
        for threads in args.threads:
            for row in measure(setting, model, shape, names, threads, say):
                rows.append(row)
                result = f"{row['ms']:.3g} ms" if "ms" in row else row.get("note")
                say(f"{model.name} {shape.name} {threads} threads, {row['engine']}: {result}")
    if args.metric:
        for name, found in judge(setting, model, names, max(args.threads)):
            say(f"{model.name} {name}: {found.get('metric', found.get('note'))}")
            for row in rows:
                if (row["model"], row["engine"]) == (model.name, name):
                    row |= {"drop": found.get("drop"), "judged": found}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    args = arguments()
    args.models, args.data = args.models.resolve(), args.data.resolve()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="autoquant-peers-") as scratch:
        work = (args.work or Path(scratch)).resolve()
        try:
            for name in args.only:
                run(MODELS[name], args, work, rows)
        except FailedError as error:  # no inputs, no reference: there is nothing to compare with
            say(f"stopped: {error}")
        except KeyboardInterrupt:
            say("stopped; what was measured so far:")
    print(common.table(map(tables.plain, rows), tables.COLUMNS))
    if args.markdown:
        args.markdown.write_text(tables.markdown(rows), encoding="utf8")
    common.write(args.json, {"rounds": args.rounds, "seed": args.seed, "cpus": os.cpu_count(), "rows": rows})
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
