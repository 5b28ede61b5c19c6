"""Where can channels be scaled without changing what a model computes? Candidates from one recorded pass, then proof.

Nothing is known here of architectures: a norm is a candidate for the linear layers that were given its very output, a
linear layer for a later one of its block whose width fits. That scaling them leaves the model's output alone is tried out,
with random exponents. It fails where something else reads the source (post-norm residuals), or where what is between is
not linear in it (GELU, the gate of SwiGLU, queries and keys).
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.models.layers import block_of, get_module
from autoquant.models.smoothed import smoothed
from autoquant.values import Layer, Smoothing

SAME = 1e-4
"""Relative L2 distance of outputs up to which they are the same but for rounding. Right pairs of MiniLM, DINOv2 and
SmolLM2 give the very same, wrong ones are at least 0.1 away."""
TRIED = 2
"""Pairs of one pattern (block numbers aside) that are tried by themselves; then all are, together."""


def find_pairs(model: nn.Module, layers: Sequence[Layer], forward: Callable[[nn.Module], Tensor]) -> list[Smoothing]:
    """Every source and the layers that read it, with exponents of 0.

    Args:
        forward: the output of a model (float32) on a few rows.
    """
    linear = [layer for layer in layers if layer.kind in ("linear", "conv1d") and not _tied(layer, layers)]
    with torch.inference_mode():
        before = forward(model)
        patterns: dict[str, list[Smoothing]] = defaultdict(list)
        for pair in _candidates(model, linear, forward):
            patterns[re.sub(r"\d+", "*", f"{pair.source} {pair.layers}")].append(pair)
        found: list[Smoothing] = []
        read: set[str] = set()
        for pairs in patterns.values():
            layers_read = {name for pair in pairs for name in pair.layers}
            if not read & layers_read and _is_same(model, pairs[-TRIED:], forward, before):
                found += pairs
                read |= layers_read
        return found if found and _is_same(model, found, forward, before) else []


def _candidates(model: nn.Module, linear: Sequence[Layer], forward: Callable[[nn.Module], Tensor]) -> list[Smoothing]:
    given: dict[str, Tensor] = {}  # what is kept is not overwritten, so that one address stands for one tensor
    read: dict[str, Tensor] = {}
    norms = {
        name: module
        for name, module in model.named_modules()
        if not list(module.children()) and getattr(module, "weight", None) is not None and module.weight.ndim == 1
    }
    with ExitStack() as hooks:
        for name, norm in norms.items():
            hooks.callback(norm.register_forward_hook(_keep_output(given, name)).remove)
        for layer in linear:
            hooks.callback(
                get_module(model, layer.name).register_forward_pre_hook(_keep_input(read, layer.name)).remove
            )
        forward(model)
    found, known = [], {layer.name: layer for layer in linear}
    for name, output in given.items():
        readers = [
            layer for layer, x in read.items() if _is(x, output) and known[layer].shape[1] == norms[name].weight.numel()
        ]
        if readers:
            found.append(Smoothing(name, tuple(readers), (0,) * norms[name].weight.numel()))
    normed = {name for pair in found for name in pair.layers}
    order = list(read)
    for number, name in enumerate(order):
        if name in normed or not re.search(r"\d", block_of(name)):
            continue
        for earlier in order[:number]:
            outputs, inputs = known[earlier].shape[0], known[name].shape[1]
            head = _head(model, outputs) if outputs < inputs else 0
            if block_of(earlier) == block_of(name) and inputs % outputs == 0 and (inputs == outputs or head):
                found.append(Smoothing(earlier, (name,), (0,) * outputs, head))
    return found


def _is_same(
    model: nn.Module, pairs: Sequence[Smoothing], forward: Callable[[nn.Module], Tensor], before: Tensor
) -> bool:
    """Whether the output stays when these are scaled by chance."""
    dice = random.Random(0)
    scaled = [
        Smoothing(p.source, p.layers, tuple(dice.choices((-2, -1, 1, 2), k=len(p.exponents))), p.head) for p in pairs
    ]
    after = forward(smoothed(model, scaled))
    return bool(torch.linalg.vector_norm(after - before) <= SAME * torch.linalg.vector_norm(before))


def _tied(layer: Layer, layers: Sequence[Layer]) -> bool:
    return layer.tied_to is not None or any(other.tied_to == layer.name for other in layers)


def _is(x: Tensor, output: Tensor) -> bool:
    return x.data_ptr() == output.data_ptr() and x.numel() == output.numel()


def _head(model: nn.Module, outputs: int) -> int:
    """Channels of one attention head, by the model's config; 0 if it says nothing that fits."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    head = getattr(config, "head_dim", None) or (hidden // heads if heads and hidden else 0)
    return head if head and outputs % head == 0 else 0


def _keep_output(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor):
            kept.setdefault(name, output)

    return hook


def _keep_input(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args:
            kept.setdefault(name, args[0])

    return hook
