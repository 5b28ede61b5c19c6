"""Checkpoint formats: which layer maps each can hold, and how it writes them into (and reads them from) a config.

A new format is one file with a subclass of `Format` and one line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from autoquant.checkpoint.compressed import CompressedTensors
from autoquant.checkpoint.format import Format
from autoquant.checkpoint.native import Autoquant
from autoquant.errors import CheckpointError, LayerMapError, pick
from autoquant.schemes import get_scheme, project
from autoquant.values import Layer

FORMATS: dict[str, Format] = {
    "compressed-tensors": CompressedTensors(),
    "autoquant": Autoquant(),
}
"""In order of preference: the first that can hold a map is used. The name is also the `quant_method` in config.json."""


def format_for(
    layers: Sequence[Layer], layer_map_layers: Mapping[str, str], base_dtype: str, *, model: nn.Module | None = None
) -> str:
    """The format in which this choice of schemes will be written.

    Args:
        layer_map_layers: layer name → scheme name; layers that it does not name are in the base dtype.
        model: the architecture, if it is at hand; some fit `autoquant` only (`write_checkpoint` sees to it anyway).
    """
    return next(name for name in FORMATS if not cannot_hold(name, layers, layer_map_layers, base_dtype, model=model))


def cannot_hold(
    name: str,
    layers: Sequence[Layer],
    layer_map_layers: Mapping[str, str],
    base_dtype: str,
    *,
    model: nn.Module | None = None,
) -> list[str]:
    """Why format `name` cannot hold this map, a line for each layer that is in the way; empty if it can."""
    form = get_format(name)
    schemes = {layer: project(get_scheme(layer_map_layers.get(layer.name, base_dtype)), layer.kind) for layer in layers}
    if all(scheme.dtype == base_dtype for scheme in schemes.values()):
        return []  # an ordinary float checkpoint
    if model is not None and (reason := form.cannot_hold_model(model)):
        return [f"this model: {reason}"]
    reasons = {layer.name: form.cannot_hold(layer, scheme, base_dtype) for layer, scheme in schemes.items()}
    return [f"{layer}: {reason}" for layer, reason in reasons.items() if reason]


def get_format(name: str) -> Format:
    """Raises LayerMapError with the nearest valid name."""
    return pick(FORMATS, name, "checkpoint format", LayerMapError)


def format_of(quantization_config: Mapping[str, object], where: str) -> Format:
    """The format that can read a config.json's `quantization_config`.

    Raises:
        CheckpointError: it was written by a quantization method that is not in `FORMATS`.
    """
    method = str(quantization_config.get("quant_method"))
    if method not in FORMATS:
        raise CheckpointError(
            f"{where} was quantized with '{method}', which autoquant does not read; it reads {', '.join(FORMATS)}. "
            "Open it with transformers, or quantize the float model again with autoquant."
        )
    return FORMATS[method]
