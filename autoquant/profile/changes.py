"""What schemes change in one layer's output, with as few products as that takes.

Quantizing the weights and the input of y = W x changes y by ΔW x + W Δx + ΔW Δx. The last part is smaller than the second
by the relative error of the rounded weight, and is left out. So w weight schemes × a input schemes need w + a products
and not w · a: the change of a scheme is the sum of its parts, and so is every inner product with it. Against the modules
themselves, 98 of 100 scores of all-MiniLM-L6-v2 differ by less than 1.5%; the worst by 15%, where one outlier sets the
scale of the whole input and rounds most of it to zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from autoquant.models.layers import weight_matrix
from autoquant.runtimes.assemble import Assembler
from autoquant.schemes import SCHEMES, dequantize, project, quantize_input
from autoquant.values import Layer, QuantizationArgs

T = TypeVar("T")
Part = str | QuantizationArgs
"""The name of a scheme, whose whole change it is, or the quantization of the input alone."""


def parts_of(layer: Layer, names: Sequence[str]) -> dict[str, tuple[Part, ...]]:
    """Scheme name → the parts that its change is the sum of.

    Only a plain product comes apart; an embedding has no input to quantize, and a convolution quantizes patches.
    """
    found: dict[str, tuple[Part, ...]] = {}
    for name in names:
        scheme = SCHEMES[name]
        separable = layer.kind in ("linear", "conv1d") and scheme.input is not None
        found[name] = (project(scheme, "embedding").name, scheme.input) if separable and scheme.input else (name,)
    return found


def output_changes(
    layer: Layer, source: nn.Module, parts: Sequence[Part], assembler: Assembler, x: Tensor, y: Tensor, room: int
) -> Iterator[tuple[list[Part], Tensor]]:
    """The change that each part makes to the float output `y` of `source` for the input `x`, some parts at a time.

    Args:
        x: (rows, …, in). y: (rows, …, out).
        room: bytes of changes (or of changed weights) held at once; one part is held in any case.

    Yields:
        some of `parts`, and their changes (parts, rows, …, out).
    """
    at_once = max(1, room // (4 * max(1, y.numel(), layer.params)))
    inputs = [part for part in parts if isinstance(part, QuantizationArgs)]
    names = [part for part in parts if isinstance(part, str)]
    weights = [name for name in names if _is_product(layer, name)]
    for some in _slices(weights, at_once):
        yield list(some), _of_weights(layer, source, some, assembler, x, y)
    for each in _slices(inputs, at_once):
        yield list(each), _of_input(layer, source, each, assembler, x, y)
    for some in _slices([name for name in names if name not in weights], at_once):
        yield list(some), _of_module(layer, some, assembler, x, y)


def _slices(values: Sequence[T], at_once: int) -> list[Sequence[T]]:
    return [values[first : first + at_once] for first in range(0, len(values), at_once)]


def _is_product(layer: Layer, name: str) -> bool:
    return layer.kind in ("linear", "conv1d") and SCHEMES[name].weights is not None and SCHEMES[name].input is None


def _of_weights(
    layer: Layer, source: nn.Module, parts: Sequence[str], assembler: Assembler, x: Tensor, y: Tensor
) -> Tensor:
    """x ΔWᵀ of all parts in one product."""
    weight = weight_matrix(source).detach().float()
    deltas = x.new_empty(len(parts), *weight.shape)
    for delta, name in zip(deltas, parts, strict=True):
        args = SCHEMES[name].weights
        assert args is not None
        torch.sub(dequantize(assembler.quantized(layer, args, "float32")), weight, out=delta)
    flat = x.reshape(1, -1, x.shape[-1]).expand(len(parts), -1, -1)
    return torch.bmm(flat, deltas.transpose(1, 2)).view(len(parts), *y.shape)


def _of_input(
    layer: Layer, source: nn.Module, parts: Sequence[QuantizationArgs], assembler: Assembler, x: Tensor, y: Tensor
) -> Tensor:
    """Δx Wᵀ of all parts in one product."""
    errors = x.new_empty(len(parts), *x.shape)
    for error, args in zip(errors, parts, strict=True):
        scale = None if args.dynamic else assembler.input_scale(layer.name, torch.float32).to(x.device)
        outliers = assembler.outliers_of(layer.name).to(x.device) if args.outliers else None
        codes, scale = quantize_input(x, args, scale, outliers)
        torch.sub(codes * scale, x, out=error)
    return (errors.flatten(0, -2) @ weight_matrix(source).detach().float().t()).view(len(parts), *y.shape)


def _of_module(layer: Layer, parts: Sequence[str], assembler: Assembler, x: Tensor, y: Tensor) -> Tensor:
    """Output of the runtime's own module less `y`."""
    changes = y.new_empty(len(parts), *y.shape)
    for change, name in zip(changes, parts, strict=True):
        torch.sub(assembler.module(layer, name, "float32")(x), y, out=change)
    return changes
