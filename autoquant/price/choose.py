"""`--runtime auto`: which of the installed runtimes serves this model fastest, on this machine, at this shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from autoquant.errors import AutoquantError
from autoquant.evaluation import forward_call, time_models
from autoquant.models.layers import Inventory
from autoquant.runtimes import RUNTIMES, Runtime, unusable
from autoquant.runtimes.assemble import Assembler
from autoquant.schemes import SCHEMES, project
from autoquant.tasks.base import Task
from autoquant.values import RuntimeChoice

ROUNDS, MAX_SECONDS = 9, 3.0
"""Of each map."""


def choose_runtime(
    model: nn.Module,
    task: Task,
    inventory: Inventory,
    schemes: Sequence[str],
    *,
    device: str,
    batch_size: int,
    seq_len: int | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RuntimeChoice:
    """Time a few uniform maps, served as a user would run them, on each runtime that can be used, and take the fastest's.

    A runtime is measured by itself, never in turns with another: two engines in one process disturb each other. If one alone
    can be used, nothing is measured.

    Args:
        schemes: of the search space. Those that need calibration are not timed, nor are asymmetric twins.
    """
    start = time.perf_counter()
    left_out = {name: reason for name, kind in RUNTIMES.items() if (reason := unusable(kind, device))}
    usable = {name: kind for name, kind in RUNTIMES.items() if name not in left_out}
    ms: dict[str, dict[str, float]] = {}
    for done, (name, kind) in enumerate(usable.items() if len(usable) > 1 else ()):
        progress(done, len(usable))
        try:
            ms[name] = _time(kind(), model, task, inventory, schemes, batch_size, seq_len)
        except AutoquantError as error:
            left_out[name] = str(error)
    chosen = min(ms, key=lambda name: min(ms[name].values())) if ms else next(iter(usable))
    return RuntimeChoice(
        chosen=chosen,
        reason=_reason(chosen, ms, left_out),
        ms=ms,
        left_out=left_out,
        shape={"batch_size": batch_size, "seq_len": seq_len},
        threads=torch.get_num_threads(),
        seconds=time.perf_counter() - start,
    )


def _time(
    runtime: Runtime,
    model: nn.Module,
    task: Task,
    inventory: Inventory,
    schemes: Sequence[str],
    batch_size: int,
    seq_len: int | None,
) -> dict[str, float]:
    example = task.example(batch_size, seq_len)
    assembler = Assembler(model, inventory, runtime)
    base = "bfloat16" if runtime.cannot_compute("bfloat16") is None else "float32"
    floats = [name for name in ("float32", "bfloat16") if runtime.cannot_compute(name) is None]
    uniform = [name for name in schemes if _is_typical(name)]
    found = {}
    for name in [*floats, *uniform]:
        own = name if name in floats else base
        layers = {}
        for layer in inventory.layers:
            scheme = project(SCHEMES[name], layer.kind)
            layers[layer.name] = own if runtime.supports(layer, scheme) else scheme.name
        call = forward_call(assembler.assemble(layers, own), task, example)
        timed = time_models({name: call}, rounds=ROUNDS, max_seconds=MAX_SECONDS, rest_seconds=runtime.rest_seconds)
        found[name] = timed[name][0]
    return found


def _is_typical(name: str) -> bool:
    scheme = SCHEMES[name]
    calibrated = scheme.is_static or scheme.has_outliers
    return scheme.weights is not None and scheme.weights.symmetric and not calibrated


def _reason(chosen: str, ms: Mapping[str, Mapping[str, float]], left_out: Mapping[str, str]) -> str:
    best = {name: min(found, key=found.__getitem__) for name, found in ms.items()}
    measured = [
        f"{name} {ms[name][best[name]]:.1f} ms ({best[name]})" for name in sorted(ms, key=lambda n: ms[n][best[n]])
    ]
    others = [f"{name}: {reason.rstrip('.')}" for name, reason in left_out.items()]
    if not measured:
        return f"Runtime {chosen}, the only one that can be used here. {'. '.join(others)}.".replace(" .", "")
    more = f" Not measured: {'; '.join(others)}." if others else ""
    return f"Runtime {chosen}: its fastest uniform map is the fastest. {', '.join(measured)}.{more}"
