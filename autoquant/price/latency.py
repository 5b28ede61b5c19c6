"""Milliseconds of every choice, measured on the real kernels at the user's batch and sequence length.

Layers of the same geometry are measured once. Within a geometry all schemes alternate, so that drift of a shared machine
hits them alike. Then whole models say what the layers cost among each other (`in_situ`). A half precision that is much
slower than float32 here (float16 on most CPUs), even with int8 products, is measured on the whole model only and left out of
the search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from autoquant import memory
from autoquant.evaluation import SETTLED, forward_call, time_models
from autoquant.models.layers import Inventory, get_module
from autoquant.models.layers import groups as groups_of
from autoquant.price.in_situ import correct, offered, sample_maps
from autoquant.price.size import price_bytes
from autoquant.runtimes.assemble import Assembler
from autoquant.runtimes.graph import decelerated
from autoquant.schemes import SCHEMES, computed_as, project
from autoquant.tasks.base import Batch, Task, to_device
from autoquant.values import Group, Layer, Price, Scheme

CALLS = 9
"""Timed calls of each whole model, if there is time, and if fewer do not settle it."""
HOPELESS = 1.25
"""A base dtype whose best takes this many times the time of float32's best, both as they are served, is not searched."""
EMULATED = 4
"""A float model that takes this many times float32's is hopeless, whatever its int8 products take: nothing more is tried."""
KEPT = 2**30
"""Bytes of kernels that are kept at most, and the share of the memory that is free."""
KEPT_SHARE = 0.1
TYPICAL = ("int8-channel-sym/a8-token", "int8-channel-sym")
"""Schemes of the uniform map that speaks for a base dtype beside its float model: the first that a layer may run."""


def measure_price(
    model: nn.Module,
    task: Task,
    inventory: Inventory,
    assembler: Assembler,
    schemes: Mapping[str, Sequence[str]],
    base_dtypes: Sequence[str],
    *,
    batch_size: int,
    seq_len: int | None,
    groups: Sequence[Group] | None = None,
    max_seconds: float = 30.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Price:
    """Measure all (base dtype, layer, scheme); about `max_seconds` of wall clock in all.

    `groups` are the layers that will share a choice (default: those that share a weight), and do in the maps measured.
    `Price.layer_ms` holds only the base dtypes worth searching; `Price.model_ms` holds all that were measured, as
    transformers runs them. What is left of a model as it is served, less its layers, is `Price.base_ms`. Of a small model the
    kernels that were built on the way are kept for the search.
    """
    start = time.perf_counter()
    device = next(model.parameters()).device
    example = to_device(task.example(batch_size, seq_len), device)
    floats = {base: assembler.assemble({}, base) for base in base_dtypes}
    calls = {base: forward_call(floats[base], task, example) for base in base_dtypes}
    model_ms = _time_bases({base: _plain(floats[base], calls[base]) for base in base_dtypes}, max_seconds / 6)
    serving = _worth_serving(model_ms, [b for b in base_dtypes if assembler.runtime.has_kernels(b, device.type)])
    served = model_ms | _time_bases({base: calls[base] for base in serving}, max_seconds / 6)
    hopeful = [base for base in serving if served[base] <= EMULATED * served.get("float32", math.inf)]
    uniform = {base: assembler.assemble(_typical(inventory.layers, schemes, base), base) for base in hopeful}
    typical = _time_bases({base: forward_call(uniform[base], task, example) for base in hopeful}, max_seconds / 10)
    for base in hopeful:
        assembler.assemble({}, base)
    make_room(assembler)
    served_ms = {base: min(served[base], typical.get(base, math.inf)) for base in base_dtypes}
    reference = served_ms.get("float32", min(served_ms.values()))
    searched = [base for base in base_dtypes if served_ms[base] <= HOPELESS * reference]

    inputs = {}
    for base in searched:
        with decelerated(floats[base]) as plain:
            inputs[base] = _layer_inputs(plain, task, example, inventory.layers)
    kinds: dict[tuple, list[Layer]] = {}
    for layer in inventory.layers:
        shape = tuple(inputs[searched[0]][layer.name].shape) if layer.name in inputs[searched[0]] else None
        kinds.setdefault((layer.kind, layer.shape, layer.has_bias, layer.patchify, shape), []).append(layer)

    layer_ms: dict[str, dict[str, dict[str, float]]] = {base: {} for base in searched}
    noise: dict[str, dict[str, dict[str, float]]] = {base: {} for base in searched}
    done, total = 0, len(kinds) * len(searched)
    share = max_seconds * 0.4 / max(1, total)
    for (*_, shape), layers in kinds.items():
        for base in searched:
            names = sorted({base, *schemes[layers[0].name]} - (set(SCHEMES) & set(base_dtypes)) | {base})
            alike: dict[Scheme, str] = {}  # of schemes that run on the same kernels one is timed
            timed = {name: alike.setdefault(computed_as(SCHEMES[name]), name) for name in names}
            found = {}
            if shape is not None:
                kernels = {
                    name: _call(
                        assembler.module(layers[0], project(SCHEMES[name], layers[0].kind).name, base),
                        inputs[base][layers[0].name],
                    )
                    for name in alike.values()
                }
                found = time_models(kernels, rounds=25, warmup=2, max_seconds=share)
            for layer in layers:
                layer_ms[base][layer.name] = {name: found.get(timed[name], (0.0, 0.0))[0] for name in names}
                noise[base][layer.name] = {name: found.get(timed[name], (0.0, 0.0))[1] for name in names}
            done += 1
            progress(done, total)
    base_ms = {}
    for base in searched:
        rest = max(0.0, served[base] - sum(layer_ms[base][layer.name][base] for layer in inventory.layers))
        maps = sample_maps(groups or groups_of(inventory.layers), offered(layer_ms[base]), base)
        times = _time_maps(assembler, base, maps, task, example, max_seconds * 0.3 / len(searched))
        corrected = correct(base, layer_ms[base], rest, maps, times)
        layer_ms[base], base_ms[base] = corrected.layer_ms, corrected.base_ms
    layer_bytes, other = price_bytes(model, inventory, schemes, base_dtypes)
    shape_used = {"batch_size": batch_size}
    if seq_len is not None:
        shape_used["seq_len"] = seq_len
    return Price(
        layer_bytes=layer_bytes,
        other_bytes=other,
        layer_ms=layer_ms,
        layer_ms_noise=noise,
        base_ms=base_ms,
        model_ms=model_ms,
        served_ms=served_ms,
        shape=shape_used,
        threads=torch.get_num_threads(),
        hardware=assembler.runtime.description(),
        runtime=assembler.runtime.name,
        seconds=time.perf_counter() - start,
    )


def make_room(assembler: Assembler) -> None:
    """Kernels of every scheme at once are many times the model: they are kept while they are few bytes beside what is free."""
    assembler.forget(over=min(KEPT, KEPT_SHARE * memory.available()))


def _worth_serving(model_ms: Mapping[str, float], supported: Sequence[str]) -> list[str]:
    """Base dtypes that the runtime has kernels for, and those that are not hopeless beside them even without any."""
    best = min((model_ms[base] for base in supported), default=math.inf)
    return [base for base, ms in model_ms.items() if base in supported or ms <= HOPELESS * best]


def _typical(layers: Sequence[Layer], schemes: Mapping[str, Sequence[str]], base: str) -> dict[str, str]:
    """The uniform map of `TYPICAL`; a layer that may run none of them stays in the base dtype."""
    found = {}
    for layer in layers:
        names = (project(SCHEMES[name], layer.kind).name for name in TYPICAL)
        found[layer.name] = next((name for name in names if name in schemes[layer.name]), base)
    return found


def _plain(model: nn.Module, call: Callable[[], None]) -> Callable[[], None]:
    def plain() -> None:
        with decelerated(model):
            call()

    return plain


def _time_bases(calls: Mapping[str, Callable[[], None]], max_seconds: float) -> dict[str, float]:
    """Median ms of a whole model of each base dtype, in turns. One far slower than the fastest is called a few times, and that
    is it.

    The first calls of a model that is served capture its graph and record it.
    """
    once: dict[str, float] = {}

    def is_worth(base: str) -> bool:
        return once[base] <= 2 * HOPELESS * min(once.values())

    for base, call in calls.items():
        call()
        for _ in range(3):
            begin = time.perf_counter()
            call()
            took = (time.perf_counter() - begin) * 1e3
            once[base] = min(took, once.get(base, math.inf))  # a busy machine makes calls slower, never faster
            if took > max_seconds * 1e3 / 20 or is_worth(base):
                break
    # float32 in any case: others are compared with it
    worth = {base: call for base, call in calls.items() if is_worth(base) or base == "float32"}
    return once | {
        base: ms for base, (ms, _) in time_models(worth, rounds=7, warmup=0, max_seconds=max_seconds).items()
    }


def _time_maps(
    assembler: Assembler, base: str, maps: Sequence[Mapping[str, str]], task: Task, example: Batch, max_seconds: float
) -> list[float]:
    """Median ms of whole models."""
    found: list[float] = []
    for layers in maps:
        call = forward_call(assembler.assemble(layers, base), task, example)
        timed = time_models({"map": call}, rounds=CALLS, warmup=2, max_seconds=max_seconds / len(maps), settled=SETTLED)
        found.append(timed["map"][0])
        make_room(assembler)
    assembler.assemble({}, base)
    return found


def _call(module: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            module(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)

    return call


def _layer_inputs(model: nn.Module, task: Task, example, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The input of each layer in one forward pass; layers that the task does not use are absent."""
    found: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.setdefault(name, args[0].detach().clone())

        return hook

    handles = [get_module(model, layer.name).register_forward_pre_hook(watch(layer.name)) for layer in layers]
    try:
        forward_call(model, task, example)()
    finally:
        for handle in handles:
            handle.remove()
    return found
