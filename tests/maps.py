"""What a layer map gives before there is a checkpoint: the model in memory, and the bytes that are promised."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from autoquant.models.layers import inspect
from autoquant.price import price_bytes
from autoquant.runtimes import TorchRuntime
from autoquant.runtimes.assemble import Assembler
from autoquant.values import Layer, LayerMap


def assembled(model: nn.Module, layer_map: LayerMap) -> nn.Module:
    """A copy of `model` that runs the map, as the search runs it."""
    assembler = Assembler(model, inspect(model), TorchRuntime(), layer_map.input_absmax, layer_map.outliers)
    return assembler.assemble(layer_map.layers, layer_map.base_dtype)


def some_outliers(layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    """Outlier channels for every layer that can have such: every fourth of the first 64."""
    return {layer.name: tuple(range(0, 64, 4)) for layer in layers if layer.shape[1] >= 64}


def promised_bytes(model: nn.Module, layer_map: LayerMap) -> int:
    """Bytes of the checkpoint's tensors, as the search counts them."""
    base, schemes = layer_map.base_dtype, {name: (scheme,) for name, scheme in layer_map.layers.items()}
    layers, other = price_bytes(model, inspect(model), schemes, (base,))
    return other[base] + sum(layers[base][name][scheme] for name, scheme in layer_map.layers.items())
