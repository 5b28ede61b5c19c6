"""Options that commands share: declared in one table, and read as they were typed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from autoquant.errors import UsageError

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
    "eval_batch_size": (int, 32, "Rows a batch when accuracy is measured; on a CPU fewer of long ones."),
    "threads": (int | None, None, "CPU threads. Default: torch's."),
    "fuse": (bool | None, None,
             "One scheme for each q/k/v and gate/up, for engines that fuse them (vLLM). Default: as --runtime needs it."),
    "no_smooth": (bool, False, "Quantize the weights as they are, without moving outliers of layer inputs into them."),
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

_FLAGS = {"quiet": ("--quiet", "-q"), "as_json": ("--json",), "fuse": ("--fuse/--no-fuse",)}
_NEGATED = {"no_grad": "gradient", "no_race": "race", "no_smooth": "smooth"}
SOURCE = ("test_data", "columns", "sizes", "metric", "max_length")
LAST = ("trust_remote_code", "quiet", "as_json")

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


def was_typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def confidence_of(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--confidence must be a number between 0.5 and 1, or 'none', not '{text}'.") from None


def read(given: dict[str, Any]) -> dict[str, Any]:
    """What `autoquant.api` takes, of the `OPTIONS` as they were typed."""
    found = dict(given)
    del found["as_json"]
    for option, setting in _NEGATED.items():
        if option in found:
            found[setting] = not found.pop(option)
    if "confidence" in found:
        found["confidence"] = confidence_of(found["confidence"])
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


def counts(text: str, option: str) -> tuple[int, ...]:
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
