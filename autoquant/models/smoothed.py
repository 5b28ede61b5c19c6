"""Scale channels of a model by powers of two so that it computes the same: see `autoquant.smoothing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autoquant.errors import LayerMapError
from autoquant.models.layers import ORIGIN, fingerprint_model, share, weight_matrix
from autoquant.values import Smoothing

_HELD = "_autoquant_smoothing"


def smoothing_of(model: nn.Module) -> tuple[Smoothing, ...]:
    """What `smoothed` did to this model; () to any other."""
    return getattr(model, _HELD, ())


def smoothed(model: nn.Module, wanted: Sequence[Smoothing]) -> nn.Module:
    """The model with these scalings and no others: itself if it has them, or a copy that shares all other weights.

    Dividing by a power of two and multiplying by it again is exact in floating point, so the copy computes the very same as
    long as nothing over- or underflows.

    Raises:
        LayerMapError: a module that is not there, or that has another width.
    """
    held, wanted = smoothing_of(model), tuple(wanted)
    if held == wanted:
        return model
    origin, copy = fingerprint_model(model), share(model)
    for sign, scalings in ((-1, held), (1, wanted)):
        for scaling in scalings:
            _scale(copy, scaling, sign)
    setattr(copy, _HELD, wanted)
    setattr(copy, ORIGIN, origin)
    return copy


def columns(scaling: Smoothing, width: int) -> Tensor:
    """(width,) the exponents of a layer's input channels: each head as many times as the layers read it."""
    exponents = torch.tensor(scaling.exponents)
    if not scaling.head:
        return exponents
    heads = exponents.view(-1, scaling.head)
    return heads.repeat_interleave(width // exponents.numel(), 0).reshape(-1)


def _scale(model: nn.Module, scaling: Smoothing, sign: int) -> None:
    source = _module(model, scaling.source)
    exponents = sign * torch.tensor(scaling.exponents)
    if scaling.head and len(exponents) % scaling.head:
        raise LayerMapError(f"smoothing of {scaling.source}: {len(exponents)} channels are no heads of {scaling.head}.")
    width = source.weight.shape[0] if source.weight.ndim == 1 else weight_matrix(source).shape[0]
    _check(scaling.source, width, len(exponents))
    for parameter in (source.weight, getattr(source, "bias", None)):
        if parameter is not None:
            is_rows = parameter.ndim == 2 and not isinstance(source, Conv1D)
            _multiply(parameter, -exponents[:, None] if is_rows else -exponents)
    for name in scaling.layers:
        layer = _module(model, name)
        if layer.weight.ndim != 2:
            raise LayerMapError(
                f"smoothing lists {name} among the layers that read {scaling.source}: it is no linear layer."
            )
        inputs = weight_matrix(layer).shape[1]
        found = sign * columns(scaling, inputs)
        _check(name, inputs, len(found))
        _multiply(layer.weight, found[:, None] if isinstance(layer, Conv1D) else found)


def _multiply(parameter: Tensor, exponents: Tensor) -> None:
    parameter.data = torch.ldexp(parameter.data, exponents.to(parameter.device)).to(parameter.dtype)


def _module(model: nn.Module, name: str) -> Any:
    try:
        found: nn.Module | None = model.get_submodule(name)
    except AttributeError:
        found = None
    if found is None or getattr(found, "weight", None) is None:
        raise LayerMapError(
            f"smoothing names {name}, but this {type(model).__name__} has no such module with a weight."
        )
    return found


def _check(name: str, width: int, exponents: int) -> None:
    if width != exponents:
        raise LayerMapError(f"smoothing has exponents for {exponents} channels, but {name} has {width}.")
