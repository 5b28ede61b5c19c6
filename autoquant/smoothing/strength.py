"""How far are channels scaled? As far as the error of int8 products on calibration data falls.

With X the largest absolute input of a channel and W its largest absolute weight, SmoothQuant (arXiv 2211.10438, eq. 4)
divides the input by s = X^α / W^(1-α). One α does not suit all layers, so each pair takes the one of `STRENGTHS` with the
smallest error, or none; s is rounded to a power of two, which costs at most a factor of √2 of range and keeps the float model
exactly as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from autoquant.models.layers import get_module, weight_matrix
from autoquant.models.smoothed import columns
from autoquant.schemes import dequantize, get_scheme, quantize, quantize_input
from autoquant.values import Smoothing
from autoquant.values.smoothing import LEAST, MOST

STRENGTHS = (0.35, 0.5, 0.65, 0.8)
SCHEME = "int8-channel-sym/a8-token"
"""The scheme whose error is looked at. Exponents for symmetric weights suit asymmetric ones, too, but not the reverse: on
SmolLM2 a divergence of 0.011 and 0.010 against 0.022 and 0.012."""
WORTH = 0.95
"""A scaling that leaves more than this share of the error is not worth having."""
ROWS = 256
"""Rows of each pair's input that the error is measured on; ranges are of all rows."""


@dataclass
class Inputs:
    """What was seen of one pair's input.

    Attributes:
        absmax: (in,) largest absolute value of each channel.
        rows: some rows of it, (some, in) each.
    """

    absmax: Tensor | None = None
    rows: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor, room: int) -> None:
        flat = x.detach().flatten(0, -2).float()
        top = flat.abs().amax(0)
        self.absmax = top if self.absmax is None else torch.maximum(self.absmax, top)
        self.rows.append(flat[:: max(1, len(flat) // room)][:room].clone())


@contextmanager
def watched(model: nn.Module, pairs: Sequence[Smoothing], batches: int):
    """While open, forward passes fill the yielded dict: source → its `Inputs`."""
    found = {pair.source: Inputs() for pair in pairs}
    room = -(-ROWS // batches)
    with ExitStack() as hooks:
        for pair in pairs:
            inputs = found[pair.source]
            module = get_module(model, pair.layers[0])
            hooks.callback(module.register_forward_pre_hook(lambda _, args, own=inputs: own.add(args[0], room)).remove)
        yield found


def choose_exponents(model: nn.Module, pair: Smoothing, inputs: Inputs) -> tuple[Smoothing, float]:
    """The pair with its best exponents, and the share of the error that they leave (1 if all are 0)."""
    if inputs.absmax is None:  # a layer that these rows do not reach
        return pair, 1.0
    weights = [weight_matrix(get_module(model, name)).detach().float() for name in pair.layers]
    x = torch.cat(inputs.rows)
    top_x, top_w = inputs.absmax, torch.stack([w.abs().amax(0) for w in weights]).amax(0)
    top_x, top_w = _of_source(top_x, pair), _of_source(top_w, pair)
    layers = [(w, x @ w.T) for w in weights]
    plain = _error(x, layers, torch.zeros(x.shape[1]))
    best, least = pair, WORTH * plain
    for strength in STRENGTHS:
        found = replace(pair, exponents=_exponents(top_x, top_w, strength))
        error = _error(x, layers, columns(found, x.shape[1]))
        if error < least:
            best, least = found, error
    return best, least / plain if best is not pair and plain > 0 else 1.0


def _exponents(top_x: Tensor, top_w: Tensor, strength: float) -> tuple[int, ...]:
    """log2 of s, rounded, about its median; 0 for a channel that is never used."""
    alive = (top_x > 0) & (top_w > 0)
    logs = strength * torch.log2(top_x[alive]) - (1 - strength) * torch.log2(top_w[alive])
    if not logs.numel():
        return (0,) * len(top_x)
    exponents = torch.zeros(len(top_x), dtype=torch.int64, device=top_x.device)
    exponents[alive] = torch.round(logs - logs.median()).clamp(LEAST, MOST).long()
    return tuple(exponents.tolist())


def _of_source(top: Tensor, pair: Smoothing) -> Tensor:
    """(out of source,) the largest of the channels that read each."""
    if not pair.head:
        return top
    return top.view(len(pair.exponents) // pair.head, -1, pair.head).amax(1).flatten()


def _error(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], exponents: Tensor) -> float:
    """Squared error of x Wᵀ in int8 over the square of x Wᵀ, summed; x: (rows, in), layers: (W, x Wᵀ) of each."""
    exponents = exponents.to(x.device)
    scheme = get_scheme(SCHEME)
    assert scheme.input is not None and scheme.weights is not None
    codes, scale = quantize_input(torch.ldexp(x, -exponents), scheme.input)
    rounded = codes.float() * scale
    total = 0.0
    for weight, exact in layers:
        stored = dequantize(quantize(torch.ldexp(weight, exponents), scheme.weights))
        error = torch.linalg.vector_norm(rounded @ stored.T - exact) / torch.linalg.vector_norm(exact).clamp(min=1e-30)
        total += float(error) ** 2
    return total
