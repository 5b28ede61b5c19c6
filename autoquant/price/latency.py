"""Milliseconds of every choice, measured on the real kernels at the user's batch and sequence length.

Layers of the same geometry are measured once. Within a geometry all schemes alternate, so that drift of a shared machine
hits them alike. A half precision that is much slower than float32 here (float16 on most CPUs) is measured on the whole
model only and left out of the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from autoquant.evaluation import forward_call, time_models
from autoquant.models.layers import Inventory, get_module
from autoquant.price.size import price_bytes
from autoquant.runtimes.assemble import Assembler
from autoquant.schemes import SCHEMES, project
from autoquant.tasks.base import Task, to_device
from autoquant.values import Layer, Price

HOPELESS = 1.25
"""A base dtype that takes this many times float32's time for the whole model is not searched."""


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
    max_seconds: float = 30.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Price:
    """Measure all (base dtype, layer, scheme); about `max_seconds` of wall clock in all.

    `Price.layer_ms` holds only the base dtypes worth searching; `Price.model_ms` holds all that were measured.
    """
    start = time.perf_counter()
    device = next(model.parameters()).device
    example = to_device(task.example(batch_size, seq_len), device)
    floats = {base: forward_call(assembler.served({}, base, example), task, example) for base in base_dtypes}
    model_ms = _time_bases(floats, max_seconds / 4)
    reference = model_ms.get("float32", min(model_ms.values()))
    searched = [base for base in base_dtypes if model_ms[base] <= HOPELESS * reference]

    inputs = {base: _layer_inputs(assembler.assemble({}, base), task, example, inventory.layers) for base in searched}
    kinds: dict[tuple, list[Layer]] = {}
    for layer in inventory.layers:
        shape = tuple(inputs[searched[0]][layer.name].shape) if layer.name in inputs[searched[0]] else None
        kinds.setdefault((layer.kind, layer.shape, layer.has_bias, layer.patchify, shape), []).append(layer)

    layer_ms: dict[str, dict[str, dict[str, float]]] = {base: {} for base in searched}
    noise: dict[str, dict[str, dict[str, float]]] = {base: {} for base in searched}
    done, total = 0, len(kinds) * len(searched)
    share = max_seconds * 0.7 / max(1, total)
    for (*_, shape), layers in kinds.items():
        for base in searched:
            names = sorted({base, *schemes[layers[0].name]} - (set(SCHEMES) & set(base_dtypes)) | {base})
            found = {}
            if shape is not None:
                calls = {
                    name: _call(
                        assembler.module(layers[0], project(SCHEMES[name], layers[0].kind).name, base),
                        inputs[base][layers[0].name],
                    )
                    for name in names
                }
                found = time_models(calls, rounds=25, warmup=2, max_seconds=share)
            for layer in layers:
                layer_ms[base][layer.name] = {name: found.get(name, (0.0, 0.0))[0] for name in names}
                noise[base][layer.name] = {name: found.get(name, (0.0, 0.0))[1] for name in names}
            done += 1
            progress(done, total)
    base_ms = {
        base: max(0.0, model_ms[base] - sum(layer_ms[base][layer.name][base] for layer in inventory.layers))
        for base in searched
    }
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
        shape=shape_used,
        threads=torch.get_num_threads(),
        hardware=assembler.runtime.description(),
        runtime=assembler.runtime.name,
        seconds=time.perf_counter() - start,
    )


def _time_bases(calls: Mapping[str, Callable[[], None]], max_seconds: float) -> dict[str, float]:
    """Median ms of the whole model in each base dtype. One far slower than the fastest is called twice, and that is it."""
    once = {}
    for base, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        once[base] = (time.perf_counter() - begin) * 1e3
    worth = {base: call for base, call in calls.items() if once[base] <= 2 * HOPELESS * min(once.values())}
    worth |= {base: call for base, call in calls.items() if base == "float32"}  # what others are compared with
    return once | {
        base: ms for base, (ms, _) in time_models(worth, rounds=9, warmup=0, max_seconds=max_seconds).items()
    }


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
