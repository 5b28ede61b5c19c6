"""What there is to choose from, in words: the tables behind `autoquant list`."""

from __future__ import annotations

from collections.abc import Callable

from autoquant.errors import pick
from autoquant.exports import EXPORTS
from autoquant.runtimes import RUNTIMES
from autoquant.schemes import SCHEMES
from autoquant.search import STRATEGIES
from autoquant.search.spaces import load_space, names
from autoquant.tasks import TASKS


def _scheme(name: str) -> str:
    scheme = SCHEMES[name]
    if scheme.weights is None:
        return f"weights and arithmetic in {scheme.dtype}"
    args = scheme.weights
    weights = f"int{args.num_bits} weights per {args.strategy}, {'symmetric' if args.symmetric else 'asymmetric'}"
    weights += " (packed in the file, 8 bits in memory)" if scheme.is_packed else ""
    if scheme.input is None:
        return f"{weights}; activations untouched"
    if scheme.has_outliers:
        return f"{weights}; int8 activations, dynamic, per token, outlier channels in 16 bits"
    how = f"dynamic, per {scheme.input.strategy}" if scheme.input.dynamic else "static, calibrated per tensor"
    return f"{weights}; int8 activations, {how}"


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


CATALOGUES: dict[str, Callable[[], dict[str, str]]] = {
    "schemes": lambda: {name: _scheme(name) for name in SCHEMES},
    "tasks": lambda: {name: f"{', '.join(task.metrics)}: {_first_line(task)}" for name, task in TASKS.items()},
    "spaces": lambda: {name: load_space(name).description for name in names()},
    "runtimes": lambda: {name: found.missing() or found().description() for name, found in RUNTIMES.items()},
    "strategies": lambda: {name: strategy.about for name, strategy in STRATEGIES.items()},
    "exports": lambda: {name: found.missing() or _first_line(found) for name, found in EXPORTS.items()},
}


def catalogue(what: str) -> dict[str, str]:
    """Name → one line about it. Raises UsageError for an unknown table."""
    return pick(CATALOGUES, what, "list")()
