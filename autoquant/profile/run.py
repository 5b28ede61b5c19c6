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
from autoquant.tasks.base import Task, batches, some_batches, to_device
from autoquant.values import Layer, Profile

PROBES = 4
"""Random output directions a batch: one backward pass each. With eight, a profile is hardly nearer to that of four times as many
rows and takes half as long again: what is left is mostly which rows they are (`benchmarks/RESULTS.md`)."""
TOKENS = 4096
"""Calibration tokens that are scored; ranges are taken from all of them."""
POSITIONS = 1024
"""The same where every token is an output: a quarter of them say as much."""
KEPT = 2**31
"""Bytes of gradients kept at once: of all layers and probes. A batch that needs more is cut."""
REACH = 16
"""Positions of a causal language model whose responses count together (see `fisher.responses`)."""
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
    reach: int | None = REACH,
    seed: int = 0,
    gradient: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Score every (layer, scheme) of `schemes` and describe every layer.

    The change that a scheme makes to a layer's output is that of its weights and input dequantized, in float32 (see
    `changes`). Ranges for static schemes, and outlier channels, are calibrated first and put into the assembler.

    Args:
        schemes: layer → names of the schemes to score.
        probes: more are slower and less noisy.
        reach: positions whose responses count together, where every position is an output: 1 for each by itself, None for
            the whole sequence.
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
    assembler.outliers.update({name: found.outliers for name, found in ranges.items()})

    wanted = {layer.name: [name for name in schemes[layer.name] if name != "float32"] for layer in inventory.layers}
    sums = _Sums(inventory.layers, wanted, assembler, reach if task.positions else None)
    tokens = POSITIONS if task.positions else TOKENS
    scored = some_batches(
        plan, task, tokens, seed, room=KEPT // (4 * probes * sum(layer.shape[0] for layer in inventory.layers))
    )
    outputs, spent_forward, spent_products = 0, 0.0, 0.0
    total = len(plan) + len(scored)
    for number, rows in enumerate(scored):
        batch = to_device(task.batch("calibration", rows), device)
        begin = time.perf_counter()
        with _recorded(model, inventory.layers, gradient) as calls, torch.set_grad_enabled(gradient):
            output = task.forward(model, batch)
        spent_forward += time.perf_counter() - begin
        outputs += _count_outputs(output, task, batch)
        if not task.positions and _rank(output, task) == 1:
            probes = 1  # one direction is all there is, and exact
        times = range(probes if gradient else 0)
        probed = [_backward(output, task, batch, calls, generator, last=i == times[-1]) for i in times]
        begin = time.perf_counter()
        with torch.no_grad():
            for layer in inventory.layers:
                for index, (x, y) in enumerate(calls[layer.name]):
                    found = [g for every in probed if (g := every[layer.name][index]) is not None]
                    sums.add(layer, get_module(model, layer.name), x, y, torch.stack(found) if found else None)
        spent_products += time.perf_counter() - begin
        progress(len(plan) + number + 1, total)
    share = sum(map(len, scored)) / sum(map(len, plan))
    passes += share * (1 + (2 * probes if gradient else 0) + spent_products / max(spent_forward, 1e-9))

    sqnr, scores = {}, {}
    for name, own in schemes.items():
        signal, noise = sums.signal[name], sums.noise[name]
        sqnr[name] = {scheme: _decibel(signal, noise[scheme]) for scheme in own}
        if gradient:
            scores[name] = {scheme: sums.score[name][scheme] / outputs for scheme in own}
        else:  # relative output error: orders schemes within a layer, compares layers only roughly
            scores[name] = {scheme: noise[scheme] / max(signal, 1e-30) for scheme in own}
    return Profile(
        scores=scores,
        sqnr_db=sqnr,
        stats={layer.name: weight_stats(model, layer, ranges.get(layer.name)) for layer in inventory.layers},
        method="fisher" if gradient else "output-error",
        rows=task.rows("calibration"),
        forwards=passes,
        seconds=time.perf_counter() - start,
    )


class _Sums:
    """Sums over the scored rows: score and noise power of every (layer, scheme), signal power of every layer."""

    def __init__(
        self, layers: Sequence[Layer], wanted: Mapping[str, Sequence[str]], assembler: Assembler, reach: int | None
    ) -> None:
        self.assembler, self.reach = assembler, reach
        self.parts = {layer.name: parts_of(layer, wanted[layer.name]) for layer in layers}
        self.score: dict[str, dict[str, float]] = {layer.name: defaultdict(float) for layer in layers}
        self.noise: dict[str, dict[str, float]] = {layer.name: defaultdict(float) for layer in layers}
        self.signal: dict[str, float] = defaultdict(float)

    def add(self, layer: Layer, source: nn.Module, x: Tensor, y: Tensor, gradients: Tensor | None) -> None:
        """Args: x, y: input and output of `source`. gradients: (probes, *y.shape); None scores nothing."""
        schemes = self.parts[layer.name]
        every = list(dict.fromkeys(part for own in schemes.values() for part in own))
        power: dict[Part, float] = {}
        dots: dict[Part, Tensor] = {}
        for parts, changes in output_changes(layer, source, every, self.assembler, x, y, CHANGES):
            power |= {part: _power(change) for part, change in zip(parts, changes, strict=True)}
            if gradients is not None:
                found = responses(gradients, changes, self.reach is not None, self.reach)
                dots |= dict(zip(parts, found, strict=True))
        self.signal[layer.name] += _power(y)
        for name, own in schemes.items():
            self.noise[layer.name][name] += sum(power[part] for part in own)  # errors of two roundings: uncorrelated
            if dots:
                self.score[layer.name][name] += float(half_square(torch.stack([dots[part] for part in own]).sum(0)))


def _power(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) ** 2


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


def _rank(output: Tensor, task: Task) -> int:
    """Dimensions in which one output can move: probabilities add up to 1."""
    return output.shape[-1] - (task.output_kind == "softmax")


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
