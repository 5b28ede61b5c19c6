"""The command line: parses, calls `autoquant.api`, prints. No logic.

Heavy imports happen inside the commands, so that `--help` and usage errors answer at once.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from autoquant.commands import certify, worker
from autoquant.errors import AutoquantError, UsageError
from autoquant.values import Budget

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The fastest and smallest per-layer quantization of a transformer within an accuracy budget, proved on data "
    "that the search never saw.",
    epilog="Exit codes: 0 pass · 1 error · 2 usage · 3 no map meets the budget · 4 inconclusive · 130 interrupted.",
)

Model = Annotated[str, typer.Argument(help="Folder, hub id, or 'default' (all-MiniLM-L6-v2, embedded).")]

OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "task": (str | None, None, "What the model is judged by: see 'autoquant list tasks'. Guessed from the model if left out."),
    "data": (str | None, None,
             "csv, tsv, jsonl, parquet, txt, npz, a folder, or a hub id. Default: the embedded docstrings."),
    "budget": (float, 0.01, "Allowed drop of the metric, 0 to 1 (perplexity: relative rise)."),
    "relative": (bool, False, "The budget is a share of the float model's metric."),
    "confidence": (str, "0.95", "Of the bound that must stay within the budget; 'none' judges the point estimate."),
    "objective": (str, "balanced", "balanced (geometric mean of speed-up and size ratio), latency or memory."),
    "space": (str, "int8_fp16", "Search space: a name ('autoquant list spaces') or a YAML file."),
    "max_mb": (float | None, None, "Hard cap on the checkpoint's MB: the smallest drop under it, instead of the largest saving."),
    "max_ms": (float | None, None, "Hard cap on the latency in ms, likewise."),
    "strategy": (str, "surrogate", "How maps are proposed: see 'autoquant list strategies'."),
    "cold": (bool, False, "Begin without the float and uniform maps that every search tries first."),
    "no_race": (bool, False, "Judge every map on the whole search split, also where the answer is known before."),
    "runtime": (str, "torch", "Kernels to measure and serve with: torch, openvino, or auto, which times both."),
    "device": (str, "cpu", "cpu or cuda."),
    "trials": (int, 16, "Maps to evaluate at most."),
    "max_minutes": (float | None, None, "Stop searching after this long; certification follows."),
    "rungs": (int, 2, "Quantized maps that may be tested on the certification data."),
    "workers": (int, 1, "Processes that judge maps at a time; each has its share of the threads, and a copy of the model."),
    "storage": (str | None, None,
                "Keep the study there: postgresql+psycopg://…, mysql…, sqlite:///… or grpc://host:port. See 'autoquant worker'."),
    "test_data": (str | None, None, "A second source that certification comes from alone."),
    "columns": (list[str] | None, None, "ROLE=NAME, or ROLE=NUMBER (from 0) for files without a header. Repeatable."),
    "sizes": (list[str] | None, None, "SPLIT=ITEMS for calibration, search, certification. Repeatable."),
    "metric": (str | None, None, "One of the task's metrics."),
    "max_length": (int | None, None, "Longest row in tokens."),
    "batch_size": (int | None, None,
                   "Batch size that latency and memory are measured at. Default: 8, of a language model 1."),
    "seq_len": (int | None, None, "Sequence length that latency and memory are measured at. Default: typical of the data."),
    "eval_batch_size": (int, 32, "Rows a batch when accuracy is measured."),
    "threads": (int | None, None, "CPU threads. Default: torch's."),
    "fuse": (bool, False, "Give q/k/v and gate/up projections one scheme, for engines that fuse them (vLLM)."),
    "no_grad": (bool, False, "Score layers by output error alone, without a backward pass."),
    "seed": (int, 0, "Seed of the splits and the search."),
    "out": (Path | None, None, "Run folder; must be empty. Default: the next free one below runs/."),
    "resume": (Path | None, None, "Continue this run folder; only --trials, --max-minutes and --workers can be changed."),
    "revision": (str | None, None, "Revision of a hub model."),
    "trust_remote_code": (bool, False, "Run model code that comes with the model."),
    "quiet": (bool, False, "No progress."),
    "as_json": (bool, False, "Print the result as JSON on stdout."),
}  # fmt: skip
"""Name → type, default and help of what `takes` gives a command."""

_FLAGS = {"quiet": ("--quiet", "-q"), "as_json": ("--json",)}
_SOURCE = ("test_data", "columns", "sizes", "metric", "max_length")
_LAST = ("trust_remote_code", "quiet", "as_json")

Command = TypeVar("Command", bound=Callable[..., int])


def takes(*names: str) -> Callable[[Command], Command]:
    """Declare that a command takes these `OPTIONS` beside its own parameters; it receives them in `**given`."""

    def declare(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        *listed, given = signature.parameters.values()
        for name in names:
            kind, default, text = OPTIONS[name]
            flags = _FLAGS.get(name, (f"--{name.replace('_', '-')}",))  # spelt out, a bool gets no --no-… beside it
            hint: Any = Annotated[kind, typer.Option(*flags, help=text)]  # type: ignore[valid-type]
            listed.append(given.replace(name=name, kind=given.KEYWORD_ONLY, default=default, annotation=hint))
        command.__signature__ = signature.replace(parameters=listed)  # type: ignore[attr-defined]
        return command

    return declare


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
    Budget(given["budget"], given["relative"], _confidence(given["confidence"]))
    from autoquant import api

    resume = given.pop("resume")
    if resume is None:
        result = api.search(model, **_read(given))
    else:
        typed = {name: value for name, value in ctx.params.items() if _typed(ctx, name)}
        changes = {name: typed.pop(name) for name in ("trials", "max_minutes", "workers", "storage") if name in typed}
        if others := [name for name in typed if name not in ("resume", "quiet", "as_json")]:
            raise UsageError(
                f"--resume takes its settings from the run folder; --{others[0].replace('_', '-')} cannot be changed there."
            )
        result = api.resume(resume, quiet=given["quiet"], **changes)
    _show(result, given["as_json"])
    return result.exit_code


@app.command(epilog="[b]Example[/b]\n\nautoquant profile ./my-model --task sts --data pairs.csv")
@takes("task", "data", "space", *_SOURCE, "eval_batch_size", "threads", "no_grad", "device", "seed", "out", *_LAST)
def profile(model: Model = "default", **given: Any) -> int:
    """Only the sensitivity of each layer to each scheme, and its page."""
    from autoquant import api

    _show(api.profile(model, **_read(given)), given["as_json"])
    return 0


@app.command(epilog="[b]Example[/b]\n\nautoquant apply ./my-fine-tune runs/default-1/layer_map.yaml --out ./quantized")
@takes("task", "columns", "trust_remote_code", "as_json")
def apply(
    model: Model,
    layer_map: Annotated[Path, typer.Argument(help="A layer map, or a folder that holds one.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint; must be empty.")],
    data: Annotated[str | None, typer.Option(help="Calibrate static activation ranges again on this data.")] = None,
    **given: Any,
) -> int:
    """Write a checkpoint under a layer map, also of a fine-tune of the same architecture."""
    from autoquant import api

    written = api.apply(model, layer_map, out, data=data, **_read(given))
    if given["as_json"]:
        print(json.dumps(written, indent=1))
        return 0
    for note in written["notes"]:
        print(f"note: {note}")
    print(
        f"{out}: {written['file_bytes'] / 1e6:.1f} MB, format {written['format'] or 'float'}. This copy is not certified."
    )
    print(f'Load it: autoquant.load("{out}")')
    return 0


@app.command(epilog="[b]Example[/b]\n\nautoquant evaluate runs/default-1/checkpoint")
@takes("task", "data", *_SOURCE, "batch_size", "seq_len", "eval_batch_size", "threads", "seed", *_LAST)
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="Any checkpoint, float or quantized: folder, hub id, or 'default'.")
    ],
    split: Annotated[str, typer.Option(help="calibration, search or certification.")] = "certification",
    **given: Any,
) -> int:
    """Metric, latency, bytes and peak memory of any checkpoint."""
    given["quiet"] |= given["as_json"]
    from autoquant import api

    found = api.evaluate(checkpoint, split=split, **_read(given))
    if given["as_json"]:
        print(json.dumps(found, indent=1))
        return 0
    shape = " × ".join(str(value) for value in found["shape"].values() if value)
    print(f"{found['metric']:14} {found['value']:.4f}  ({found['items']} items of the {found['split']} split)")
    print(
        f"{'latency':14} {found['latency_ms']:.2f} ± {found['latency_noise_ms']:.2f} ms  "
        f"(batch {shape}, {found['threads']} threads)"
    )
    print(f"{'bytes':14} {found['bytes'] / 1e6:.1f} MB on disk")
    print(f"{'peak memory':14} {found['peak_memory_bytes'] / 1e6:.1f} MB more than the empty process")
    return 0


@app.command(
    epilog="[b]Examples[/b]\n\n"
    "autoquant bench runs/default-1/checkpoint --out bench.html\n\n"
    "autoquant bench ./my-model --batch-sizes 1,8,32 --seq-lens 16,128 --threads 1,2 --json\n\n"
    "Exit code 4: the machine was too noisy to tell which batch size is best."
)
@takes(*_LAST)
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
    given |= {name: _counts(text, f"--{name.replace('_', '-')}") for name, text in lists.items() if text is not None}
    from autoquant import api

    as_json = given.pop("as_json")
    given["quiet"] |= as_json
    found = api.bench(checkpoint, seconds=seconds, out=out, **given)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from rich.console import Console

        from autoquant.report import render_bench_terminal

        render_bench_terminal(found, Console())
        if out is not None:
            print(f"Page: {out}")
    return api.EXIT_CODES["INCONCLUSIVE"] if found["noisy"] else 0


@app.command(epilog="[b]Example[/b]\n\nautoquant pick runs/default-1 --budget 0.005")
@takes("confidence", "quiet", "as_json")
def pick(
    run: Annotated[Path, typer.Argument(help="The folder of a finished search.")],
    budget: Annotated[float, typer.Option(help="Allowed drop, in the unit of the search's own budget.")],
    **given: Any,
) -> int:
    """Certify another point of a search's front, for another budget, without searching again."""
    confidence = _confidence(given["confidence"])
    Budget(budget, confidence=confidence)
    from autoquant import api

    result = api.pick(run, budget, confidence=confidence, quiet=given["quiet"])
    _show(result, given["as_json"])
    return result.exit_code


@app.command(epilog="[b]Example[/b]\n\nautoquant report runs/default-1")
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> int:
    """Render the report of a run again."""
    from autoquant import api

    print(api.report(run))
    return 0


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


@app.command(
    epilog="[b]Example[/b]\n\nautoquant export runs/default-1/checkpoint --format openvino --out ./openvino-model"
)
@takes("trust_remote_code", "as_json")
def export(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint that autoquant wrote.")],
    format: Annotated[str, typer.Option("--format", help="openvino or onnx: see 'autoquant list exports'.")],
    out: Annotated[Path, typer.Option(help="Folder of the export; must be empty, or hold an older one.")],
    **given: Any,
) -> int:
    """Write a checkpoint for OpenVINO or ONNX Runtime: the same codes and scales."""
    from autoquant import exports

    written = exports.export(checkpoint, format, out, trust_remote_code=given["trust_remote_code"])
    if given["as_json"]:
        print(json.dumps(written, indent=1))
    else:
        for note in written["notes"]:
            print(f"note: {note}")
        print(
            f"{out}: {written['file_bytes'] / 1e6:.1f} MB for {written['format']}. Certified was the checkpoint, not this."
        )
        print(f"Measure it: autoquant evaluate {out}")
    return 0


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


def _show(result: Any, as_json: bool) -> None:
    if as_json:
        print((result.folder / "report.json").read_text(encoding="utf8"), end="")
        return
    from rich.console import Console

    from autoquant.report import render_terminal

    render_terminal(dict(result.report), Console(), folder=str(result.folder))


def _typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _confidence(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--confidence must be a number between 0.5 and 1, or 'none', not '{text}'.") from None


def _read(given: dict[str, Any]) -> dict[str, Any]:
    """What `autoquant.api` takes, of the `OPTIONS` as they were typed."""
    found = dict(given)
    del found["as_json"]
    if "no_grad" in found:
        found["gradient"] = not found.pop("no_grad")
    if "no_race" in found:
        found["race"] = not found.pop("no_race")
    if "confidence" in found:
        found["confidence"] = _confidence(found["confidence"])
    found["columns"] = _pairs(found["columns"], "--columns")
    if "sizes" in found:
        found["sizes"] = _numbers(found["sizes"], "--sizes")
    return found


def _pairs(values: list[str] | None, option: str) -> dict[str, str | int] | None:
    if not values:
        return None
    found: dict[str, str | int] = {}
    for value in values:
        role, sign, name = value.partition("=")
        if not sign or not role or not name:
            raise UsageError(f"{option} {value}: expected ROLE=NAME, as in {option} text=sentence.")
        found[role] = int(name) if name.isdecimal() else name
    return found


def _counts(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: expected whole numbers, as in {option} 1,2,4.") from None


def _numbers(values: list[str] | None, option: str) -> dict[str, int] | None:
    pairs = _pairs(values, option)
    if pairs is None:
        return None
    for name, value in pairs.items():
        if not isinstance(value, int):
            raise UsageError(f"{option} {name}={value}: expected a whole number, as in {option} search=500.")
    return pairs  # type: ignore[return-value]


certify.add_to(app, takes, _read)
worker.add_to(app, takes)
