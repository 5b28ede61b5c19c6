"""The command line: parses, calls `autoquant.api`, prints. No logic.

Heavy imports happen inside the commands, so that `--help` and usage errors answer at once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

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
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task", help="What the model is judged by: see 'autoquant list tasks'. Guessed from the model if left out."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(help="csv, tsv, jsonl, parquet, txt, npz, a folder, or a hub id. Default: the embedded docstrings."),
]
TestData = Annotated[str | None, typer.Option(help="A second source that certification comes from alone.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", help="ROLE=NAME, or ROLE=NUMBER (from 0) for files without a header. Repeatable."),
]
Sizes = Annotated[
    list[str] | None, typer.Option("--sizes", help="SPLIT=ITEMS for calibration, search, certification. Repeatable.")
]
Metric = Annotated[str | None, typer.Option(help="One of the task's metrics.")]
MaxLength = Annotated[int | None, typer.Option(help="Longest row in tokens.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; must be empty. Default: the next free one below runs/.")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Batch size that latency and memory are measured at. Default: 8, of a language model 1."),
]
SeqLen = Annotated[
    int | None,
    typer.Option(help="Sequence length that latency and memory are measured at. Default: typical of the data."),
]
EvalBatch = Annotated[int, typer.Option("--eval-batch-size", help="Rows a batch when accuracy is measured.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. Default: torch's.")]
Seed = Annotated[int, typer.Option(help="Seed of the splits and the search.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code that comes with the model.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Space = Annotated[str, typer.Option(help="Search space: a name ('autoquant list spaces') or a YAML file.")]
NoGrad = Annotated[bool, typer.Option("--no-grad", help="Score layers by output error alone, without a backward pass.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


@app.command(
    epilog="[b]Examples[/b]\n\n"
    "autoquant search --budget 0.01\n\n"
    "autoquant search ./my-reranker --task classification --data pairs.csv --budget 0.005\n\n"
    "autoquant search ./llm --task causal-lm --data text.txt --objective memory --max-minutes 30\n\n"
    "autoquant search --resume runs/default-1"
)
def search(
    model: Model = "default",
    task: TaskName = None,
    data: Data = None,
    budget: Annotated[
        float, typer.Option(help="Allowed drop of the metric, 0 to 1 (perplexity: relative rise).")
    ] = 0.01,
    relative: Annotated[
        bool, typer.Option("--relative", help="The budget is a share of the float model's metric.")
    ] = False,
    confidence: Annotated[
        str, typer.Option(help="Of the bound that must stay within the budget; 'none' judges the point estimate.")
    ] = "0.95",
    objective: Annotated[
        str, typer.Option(help="balanced (geometric mean of speed-up and size ratio), latency or memory.")
    ] = "balanced",
    space: Space = "int8_fp16",
    strategy: Annotated[str, typer.Option(help="surrogate, tpe or random.")] = "surrogate",
    runtime: Annotated[str, typer.Option(help="Kernels to measure and serve with.")] = "torch",
    device: Device = "cpu",
    trials: Annotated[int, typer.Option(help="Maps to evaluate at most.")] = 16,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop searching after this long; certification follows.")
    ] = None,
    rungs: Annotated[int, typer.Option(help="Quantized maps that may be tested on the certification data.")] = 2,
    test_data: TestData = None,
    columns: Columns = None,
    sizes: Sizes = None,
    metric: Metric = None,
    max_length: MaxLength = None,
    batch_size: BatchSize = None,
    seq_len: SeqLen = None,
    eval_batch_size: EvalBatch = 32,
    threads: Threads = None,
    fuse: Annotated[
        bool,
        typer.Option(
            "--fuse", help="Give q/k/v and gate/up projections one scheme, for engines that fuse them (vLLM)."
        ),
    ] = False,
    no_grad: NoGrad = False,
    seed: Seed = 0,
    out: Out = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run folder; only --trials and --max-minutes can be changed.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    ctx: typer.Context = None,  # type: ignore[assignment]
) -> int:
    """Search, certify and write the best quantization under a budget."""
    Budget(budget, relative, _confidence(confidence))  # a typing mistake is answered before seconds of imports
    from autoquant import api

    if resume is not None:
        given = {name: ctx.params[name] for name in ("trials", "max_minutes") if _typed(ctx, name)}
        others = [
            name
            for name in ctx.params
            if _typed(ctx, name) and name not in ("trials", "max_minutes", "resume", "quiet", "as_json")
        ]
        if others:
            raise UsageError(
                f"--resume takes its settings from the run folder; --{others[0].replace('_', '-')} cannot be changed there."
            )
        result = api.resume(resume, quiet=quiet, **given)
    else:
        result = api.search(
            model, task, data, out=out, quiet=quiet, budget=budget, relative=relative, confidence=_confidence(confidence),
            objective=objective, space=space, strategy=strategy, runtime=runtime, device=device, trials=trials,
            max_minutes=max_minutes, rungs=rungs, test_data=test_data, columns=_pairs(columns, "--columns"),
            sizes=_numbers(sizes, "--sizes"), metric=metric, max_length=max_length, batch_size=batch_size, seq_len=seq_len,
            eval_batch_size=eval_batch_size, threads=threads, fuse=fuse, gradient=not no_grad, seed=seed, revision=revision,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
    _show(result, as_json)
    return result.exit_code


@app.command(epilog="[b]Example[/b]\n\nautoquant profile ./my-model --task sts --data pairs.csv")
def profile(
    model: Model = "default",
    task: TaskName = None,
    data: Data = None,
    space: Space = "int8_fp16",
    test_data: TestData = None,
    columns: Columns = None,
    sizes: Sizes = None,
    metric: Metric = None,
    max_length: MaxLength = None,
    eval_batch_size: EvalBatch = 32,
    threads: Threads = None,
    no_grad: NoGrad = False,
    device: Device = "cpu",
    seed: Seed = 0,
    out: Out = None,
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Only the sensitivity of each layer to each scheme, and its page."""
    from autoquant import api

    result = api.profile(
        model, task, data, out=out, quiet=quiet, space=space, test_data=test_data, columns=_pairs(columns, "--columns"),
        sizes=_numbers(sizes, "--sizes"), metric=metric, max_length=max_length, eval_batch_size=eval_batch_size,
        threads=threads, gradient=not no_grad, device=device, seed=seed, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    _show(result, as_json)
    return 0


@app.command(epilog="[b]Example[/b]\n\nautoquant apply ./my-fine-tune runs/default-1/layer_map.yaml --out ./quantized")
def apply(
    model: Model,
    layer_map: Annotated[Path, typer.Argument(help="A layer map, or a folder that holds one.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint; must be empty.")],
    task: TaskName = None,
    data: Annotated[str | None, typer.Option(help="Calibrate static activation ranges again on this data.")] = None,
    columns: Columns = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> int:
    """Write a checkpoint under a layer map, also of a fine-tune of the same architecture."""
    from autoquant import api

    written = api.apply(
        model,
        layer_map,
        out,
        task=task,
        data=data,
        columns=_pairs(columns, "--columns"),
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print(json.dumps(written, indent=1))
    else:
        for note in written["notes"]:
            print(f"note: {note}")
        print(
            f"{out}: {written['file_bytes'] / 1e6:.1f} MB, format {written['format'] or 'float'}. This copy is not certified."
        )
        print(f'Load it: autoquant.load("{out}")')
    return 0


@app.command(epilog="[b]Example[/b]\n\nautoquant evaluate runs/default-1/checkpoint")
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="Any checkpoint, float or quantized: folder, hub id, or 'default'.")
    ],
    task: TaskName = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="calibration, search or certification.")] = "certification",
    test_data: TestData = None,
    columns: Columns = None,
    sizes: Sizes = None,
    metric: Metric = None,
    max_length: MaxLength = None,
    batch_size: BatchSize = None,
    seq_len: SeqLen = None,
    eval_batch_size: EvalBatch = 32,
    threads: Threads = None,
    seed: Seed = 0,
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Metric, latency, bytes and peak memory of any checkpoint."""
    from autoquant import api

    found = api.evaluate(
        checkpoint, task, data, split=split, test_data=test_data, columns=_pairs(columns, "--columns"),
        sizes=_numbers(sizes, "--sizes"), metric=metric, max_length=max_length, batch_size=batch_size, seq_len=seq_len,
        eval_batch_size=eval_batch_size, threads=threads, seed=seed, trust_remote_code=trust_remote_code, quiet=quiet or as_json,
    )  # fmt: skip
    if as_json:
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


@app.command(epilog="[b]Example[/b]\n\nautoquant report runs/default-1")
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> int:
    """Render the report of a run again."""
    from autoquant import api

    print(api.report(run))
    return 0


@app.command(name="list", epilog="[b]Example[/b]\n\nautoquant list schemes")
def list_(
    what: Annotated[str, typer.Argument(help="schemes, tasks, spaces, runtimes, exports or strategies.")],
    as_json: AsJson = False,
) -> int:
    """What there is to choose from."""
    from autoquant.catalogue import catalogue

    rows = catalogue(what)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        width = max(map(len, rows), default=0)
        for name, words in rows.items():
            print(f"{name:{width}}  {words}".rstrip())
    return 0


@app.command(
    epilog="[b]Example[/b]\n\nautoquant export runs/default-1/checkpoint --format openvino --out ./openvino-model"
)
def export(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint that autoquant wrote.")],
    format: Annotated[str, typer.Option("--format", help="openvino or onnx: see 'autoquant list exports'.")],
    out: Annotated[Path, typer.Option(help="Folder of the export; must be empty, or hold an older one.")],
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> int:
    """Write a checkpoint for OpenVINO or ONNX Runtime: the same codes and scales."""
    from autoquant import exports

    written = exports.export(checkpoint, format, out, trust_remote_code=trust_remote_code)
    if as_json:
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
        return _interrupted()
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


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return 130


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


def _numbers(values: list[str] | None, option: str) -> dict[str, int] | None:
    pairs = _pairs(values, option)
    if pairs is None:
        return None
    for name, value in pairs.items():
        if not isinstance(value, int):
            raise UsageError(f"{option} {name}={value}: expected a whole number, as in {option} search=500.")
    return pairs  # type: ignore[return-value]
