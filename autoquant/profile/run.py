"""Profile a model: every layer × every scheme from a few passes over the calibration split."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.errors import NumericsError
from autoquant.models.layers import Inventory, get_module
from autoquant.profile.changes import Part, output_changes, parts_of
from autoquant.profile.fisher import half_square, output_probe, responses
from autoquant.profile.ranges import input_ranges, weight_stats
from autoquant.runtimes.assemble import Assembler
from autoquant.tasks.base import Task, batches, to_device
from autoquant.values import Layer, Profile

PROBES = 4
"""Random output directions a batch: one backward pass each."""
TOKENS = 8192
"""Calibration tokens that are scored; ranges are taken from all of them. More changes no rank (see benchmarks)."""
IMAGE_TOKENS = 64
"""What an image counts for, where rows have no length in tokens."""
CHANGES = 256 * 2**20
"""Bytes of output changes held at once."""


def measure_profile(
    model: nn.Module,
    task: Task,
    inventory: Inventory,
    assembler: Assembler,
    schemes: Mapping[str, Sequence[str]],
    *,
    batch_size: int = 16,
    probes: int = PROBES,
    seed: int = 0,
    gradient: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Score every (layer, scheme) of `schemes` and describe every layer.

    The change that a scheme makes to a layer's output is that of the runtime's own kernels in float32. Ranges for static
    schemes are calibrated first and put into `assembler.input_absmax`.

    Args:
        schemes: layer → names of the schemes to score.
        probes: more are slower and less noisy.
        gradient: False scores by output error alone (no autograd needed).

    Raises:
        NumericsError: the model gives a non-finite output.
    """
    start, passes = time.perf_counter(), 0.0
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    plan = batches(task, "calibration", batch_size)
    total = 2 * len(plan)

    with input_ranges(model, inventory.layers) as ranges, torch.no_grad():
        for number, rows in enumerate(plan):
            output = task.forward(model, to_device(task.batch("calibration", rows), device))
            _check_finite(output, task)
            progress(number + 1, total)
    passes += 1
    assembler.input_absmax.update({name: found.absmax for name, found in ranges.items()})

    score: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    noise: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    signal: dict[str, float] = defaultdict(float)
    outputs = 0
    spent_products = 0.0
    spent_forward = 0.0
    scored = _sample(plan, task, seed)
    wanted = {layer.name: [name for name in schemes[layer.name] if name != "float32"] for layer in inventory.layers}
    total = len(plan) + len(scored)
    for number, rows in enumerate(scored):
        batch = to_device(task.batch("calibration", rows), device)
        begin = time.perf_counter()
        with _recorded(model, inventory.layers, gradient) as calls, torch.set_grad_enabled(gradient):
            output = task.forward(model, batch)
        spent_forward += time.perf_counter() - begin
        outputs += _count_outputs(output, task, batch)
        probed = [_backward(output, task, batch, calls, generator, last=i == probes - 1) for i in range(probes)] if gradient else []
        begin = time.perf_counter()
        with torch.no_grad():
            for layer in inventory.layers:
                source, parts = get_module(model, layer.name), parts_of(layer, wanted[layer.name])
                every = list(dict.fromkeys(part for found in parts.values() for part in found))
                for index, (x, y) in enumerate(calls[layer.name]):
                    signal[layer.name] += float(torch.linalg.vector_norm(y)) ** 2
                    found = [g[layer.name][index] for g in probed]
                    gradients = torch.stack([g for g in found if g is not None]) if found and found[0] is not None else None
                    moved: dict[Part, Tensor] = {}
                    power: dict[Part, float] = {}
                    for some, changes in output_changes(layer, source, every, assembler, x, y, CHANGES):
                        power |= {part: float(torch.linalg.vector_norm(c)) ** 2 for part, c in zip(some, changes, strict=True)}
                        if gradients is not None:
                            moved |= dict(zip(some, responses(gradients, changes, task.positions), strict=True))
                    for name, own in parts.items():
                        noise[layer.name][name] += sum(power[part] for part in own)
                        if gradients is not None:
                            score[layer.name][name] += float(half_square(sum(moved[part] for part in own)))
        spent_products += time.perf_counter() - begin
        progress(len(plan) + number + 1, total)
    passes += len(scored) / len(plan) * (1 + (2 * probes if gradient else 0) + spent_products / max(spent_forward, 1e-9))

    sqnr = {
        layer.name: {name: _decibel(signal[layer.name], noise[layer.name][name]) for name in schemes[layer.name]}
        for layer in inventory.layers
    }
    if gradient:
        scores = {layer.name: {name: score[layer.name][name] / outputs for name in schemes[layer.name]} for layer in inventory.layers}
    else:  # relative output error: orders schemes within a layer, compares layers only roughly
        scores = {
            layer.name: {name: noise[layer.name][name] / max(signal[layer.name], 1e-30) for name in schemes[layer.name]}
            for layer in inventory.layers
        }
    return Profile(
        scores=scores,
        sqnr_db=sqnr,
        stats={layer.name: weight_stats(model, layer, ranges.get(layer.name)) for layer in inventory.layers},
        method="fisher" if gradient else "output-error",
        rows=task.rows("calibration"),
        forwards=passes,
        seconds=time.perf_counter() - start,
    )


def _sample(plan: list[list[int]], task: Task, seed: int) -> list[list[int]]:
    """Batches of like rows with about `TOKENS` tokens in all, spread over short and long rows; all of them if fewer."""
    lengths = task.lengths("calibration")
    order = np.random.default_rng(seed).permutation(len(plan))
    picked, tokens = [], 0
    for index in order:
        if tokens >= TOKENS and len(picked) >= 2:
            break
        picked.append(plan[index])
        tokens += sum(lengths[row] for row in plan[index]) * (1 if max(lengths) > 1 else IMAGE_TOKENS)
    return picked


@contextmanager
def _recorded(model: nn.Module, layers: Sequence[Layer], gradient: bool):
    """While open, each forward pass appends (input, output) of every layer; outputs join the autograd graph."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def record(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if gradient and not output.requires_grad:
                output = output.detach().requires_grad_()
            calls[name].append((args[0].detach(), output))
            return output

        return hook

    frozen = [p for p in model.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    handles = [get_module(model, layer.name).register_forward_hook(record(layer.name)) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)


def _backward(output, task, batch, calls, generator, last):
    probe = output_probe(output, task.output_kind, generator)
    if task.positions and (mask := task.mask(batch)) is not None:
        probe = probe * mask.unsqueeze(-1)
    tensors = [y for recorded in calls.values() for _, y in recorded]
    found = iter(torch.autograd.grad((output.float() * probe).sum(), tensors, retain_graph=not last, allow_unused=True))
    return {name: [next(found) for _ in recorded] for name, recorded in calls.items()}


def _count_outputs(output: Tensor, task: Task, batch) -> int:
    if not task.positions:
        return output.shape[0]
    mask = task.mask(batch)
    return output.shape[0] * output.shape[1] if mask is None else int(mask.sum())


def _check_finite(output: Tensor, task: Task) -> None:
    if not bool(torch.isfinite(output).all()):
        raise NumericsError(
            f"The float model gives NaN or infinite outputs on the calibration data of task '{task.name}'. "
            "Check the model on this data before quantizing it."
        )


def _decibel(signal: float, noise: float) -> float:
    return float(min(200.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))
