"""The summary of a run as plain data: what `report.json` holds, and what every renderer reads.

Summarise, then render: the pipeline fills this dictionary, `validate` checks it, and a renderer (HTML, terminal,
sentence) only formats it. A report of `autoquant profile` has the keys of `ProfileReport` only; one of a full run has
those of `RunReport`. A number may be None wherever it was not measured (JSON has no NaN).

"quantized" is one map everywhere: the one that `metric` judges, `latency_ms.quantized` times, and `schemes` and
`layers[].scheme` describe, whether it is shipped or not. When none passed it is the one that did not; when quantizing does not
pay it is the float map that is shipped, as autoquant runs it.

This file does without `from __future__ import annotations`: `validate` reads the annotations at run time, and
`NotRequired` is not seen inside a string.
"""

from types import UnionType
from typing import Any, Literal, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from autoquant.errors import CheckpointError

Status = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Choice = Literal["quantized", "half", "float32"]
CHOICES: tuple[Choice, ...] = ("float32", "half", "quantized")


class Three(TypedDict):
    """One figure for each of the three models that are compared; None where one was not measured."""

    float32: float | None
    half: NotRequired[float | None]
    quantized: NotRequired[float | None]


class BudgetSummary(TypedDict):
    """`relative`: drops are shares of the float model's value. `confidence` None: judged by the point estimate."""

    drop: float
    relative: bool
    confidence: float | None


class MetricSummary(TypedDict):
    """What the verdict is about. `drop` is positive when worse, whichever way the metric runs."""

    name: str
    higher_is_better: bool
    float: float
    quantized: float
    half: NotRequired[float | None]
    drop: float
    upper_bound: float | None
    lower_bound: float | None
    confidence: float | None
    n: int
    method: str
    needed: NotRequired[int | None]
    item: NotRequired[str]
    clusters: NotRequired[int | None]
    use: NotRequired[int]


class CandidateSummary(TypedDict):
    number: int
    label: str
    origin: NotRequired[str]
    base_dtype: NotRequired[str]
    ms: float | None
    bytes: int | None
    drop: float | None
    divergence: NotRequired[float | None]
    divergence_error: NotRequired[float | None]
    predicted_divergence: NotRequired[float | None]
    saving: NotRequired[float | None]
    feasible: NotRequired[bool | None]
    state: NotRequired[str]
    reason: NotRequired[str | None]
    on_front: NotRequired[bool]
    certified: NotRequired[str | None]
    shipped: NotRequired[bool]


class SearchSummary(TypedDict):
    """`full_evaluations`: items that were evaluated over items of the search split; `items_without_racing`: what they would
    have been had every map been judged on all items."""

    trials: int
    full_evaluations: NotRequired[int | float]
    items_evaluated: NotRequired[int]
    items_without_racing: NotRequired[int]
    skipped: NotRequired[int]
    seconds: NotRequired[float]
    failed: NotRequired[int]
    objective: NotRequired[str]
    seed: NotRequired[int]
    candidates: list[CandidateSummary]


class Rung(TypedDict):
    """One map of the certification ladder, in the order tested."""

    label: str
    status: str
    drop: float | None
    upper_bound: float | None
    lower_bound: float | None
    n: int


class LayerSummary(TypedDict):
    name: str
    kind: str
    shape: list[int]
    params: int
    scores: dict[str, float | None]
    group: NotRequired[str | None]
    scheme: NotRequired[str | None]
    why: NotRequired[str | None]
    weight_min: NotRequired[float | None]
    weight_max: NotRequired[float | None]
    weight_kurtosis: NotRequired[float | None]
    channel_range_ratio: NotRequired[float | None]
    input_absmax: NotRequired[float | None]
    outlier_ratio: NotRequired[float | None]
    sqnr_db: NotRequired[dict[str, float | None]]
    ms: NotRequired[dict[str, float | None]]
    bytes: NotRequired[dict[str, int | None]]
    ms_saved: NotRequired[float | None]
    bytes_saved: NotRequired[float | None]
    score: NotRequired[float | None]
    sqnr: NotRequired[float | None]


class SkippedSummary(TypedDict):
    name: str
    type: str
    params: int
    reason: str


class ProfileSummary(TypedDict):
    method: str
    rows: int
    forwards: NotRequired[float]
    seconds: NotRequired[float]


class SmoothingSummary(TypedDict):
    pairs: int
    smoothed: int
    error_left: float


class ProfileReport(TypedDict):
    title: str
    created: str
    layers: list[LayerSummary]
    sentence: NotRequired[str]
    skipped: NotRequired[list[SkippedSummary]]
    profile: NotRequired[ProfileSummary]
    smoothing: NotRequired[SmoothingSummary]
    stages: NotRequired[dict[str, float]]
    model: NotRequired[dict[str, Any]]
    task: NotRequired[dict[str, Any]]
    notes: NotRequired[list[str]]
    files: NotRequired[dict[str, str]]
    versions: NotRequired[dict[str, str]]
    hardware: NotRequired[str]
    runtime: NotRequired[str]
    threads: NotRequired[int | None]
    shape: NotRequired[dict[str, Any]]


class PowerSummary(TypedDict):
    """What the certification data could settle, told before the search: see `autoquant.certify.power.Power`."""

    n: int
    clusters: int | None
    metric: str
    float_value: float
    float_lower: float | None
    float_upper: float | None
    budget: float
    confidence: float | None
    settles: float | None
    settles_half: float | None
    needed: NotRequired[dict[str, int | None] | None]
    enough: NotRequired[bool | None]
    known: NotRequired[bool]


class RunReport(ProfileReport):
    verdict: Status
    budget: BudgetSummary
    metric: MetricSummary
    half_dtype: str
    base_dtype: str
    shipped: Choice
    latency_ms: Three
    bytes: Three
    schemes: dict[str, int]
    latency_noise_ms: NotRequired[Three]
    peak_memory_bytes: NotRequired[Three]
    search: NotRequired[SearchSummary]
    certification: NotRequired[list[Rung]]
    load: NotRequired[str]
    power: NotRequired[PowerSummary]
    next: NotRequired[list[str]]


def is_run(report: dict[str, Any]) -> bool:
    """Whether this is the report of a full run; otherwise of a profile alone."""
    return report.get("verdict") is not None


def validate(report: dict[str, Any]) -> None:
    """Raises CheckpointError naming the first key that is missing or of the wrong type. Unknown keys are let be."""
    _check(report, RunReport if is_run(report) else ProfileReport, "")


def _check(value: Any, wanted: Any, path: str) -> None:
    if is_typeddict(wanted):
        _mapping(value, path)
        for key in sorted(wanted.__required_keys__):
            if key not in value:
                raise _wrong(f"'{_join(path, key)}' is missing")
        for key, annotation in get_type_hints(wanted).items():
            if key in value:
                _check(value[key], annotation, _join(path, key))
        return
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return
    if origin in (Union, UnionType):
        if value is not None or type(None) not in arguments:
            rest = [argument for argument in arguments if argument is not type(None)]
            _check(value, float if set(rest) <= {int, float} else rest[0], path)
    elif origin is Literal:
        if value not in arguments:
            raise _wrong(f"'{path}' is {value!r}; valid: {', '.join(arguments)}")
    elif origin is list:
        if not isinstance(value, list | tuple):
            raise _wrong(f"'{path}' should be a list, but is {_named(value)}")
        for index, item in enumerate(value):
            _check(item, arguments[0], f"{path}[{index}]")
    elif origin is dict:
        _mapping(value, path)
        for key, item in value.items():
            _check(item, arguments[1], _join(path, str(key)))
    elif wanted in (int, float):
        if value is None or isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(f"'{path}' should be a number, but is {_named(value)}")
    elif not isinstance(value, wanted):
        raise _wrong(f"'{path}' should be a {wanted.__name__}, but is {_named(value)}")


def _mapping(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(f"'{path or 'report'}' should be a mapping, but is {_named(value)}")


def _named(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _wrong(what: str) -> CheckpointError:
    return CheckpointError(
        f"The report is incomplete: {what}. The file was cut off or written by another version; delete it and continue "
        "the run with --resume to have it made again."
    )
