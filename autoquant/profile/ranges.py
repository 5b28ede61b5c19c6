"""Ranges and outliers of weights and of layer inputs: what people read first about a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoquant.models.layers import get_module, weight_matrix
from autoquant.schemes import outlier_channels
from autoquant.values import Layer, LayerStats

_SAMPLE = 4096
"""Values kept of each layer's input a batch, for the 99.9th percentile."""


@dataclass
class InputRange:
    """What was seen of a layer's input.

    Attributes:
        channels: (in,) largest absolute value of each channel; of an input that is no rows of channels (an image) all in one.
        sample: some absolute values of each batch.
    """

    channels: Tensor
    sample: list[Tensor]

    @property
    def absmax(self) -> float:
        return float(self.channels.max())

    @property
    def outliers(self) -> tuple[int, ...]:
        """The outlier channels of `schemes.outlier_channels`."""
        return tuple(outlier_channels(self.channels).tolist())

    @property
    def outlier_ratio(self) -> float:
        """Largest |x| over the 99.9th percentile of |x| (of a sample)."""
        high = torch.quantile(torch.cat(self.sample), 0.999).item()
        return self.absmax / high if high > 0 else 1.0


@contextmanager
def input_ranges(model: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[str, InputRange]]:
    """While open, forward passes of `model` fill the yielded dict: layer → range of its input."""
    ranges: dict[str, InputRange] = {}

    def watch(layer: Layer):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            rows = x.reshape(-1, 1 if layer.kind == "conv2d" else x.shape[-1])
            low, high = torch.aminmax(rows, dim=0)
            top = torch.maximum(-low, high).float()
            found = ranges.setdefault(layer.name, InputRange(top, []))
            found.channels = torch.maximum(found.channels, top)
            flat = x.flatten()
            found.sample.append(flat[:: max(1, flat.numel() // _SAMPLE)].abs().float())

        return hook

    handles = [
        get_module(model, layer.name).register_forward_pre_hook(watch(layer))
        for layer in layers
        if layer.kind != "embedding"
    ]
    try:
        yield ranges
    finally:
        for handle in handles:
            handle.remove()


def weight_stats(model: nn.Module, layer: Layer, found: InputRange | None) -> LayerStats:
    """Statistics of one layer's weight (out, in) and, if seen, of its input."""
    weight = weight_matrix(get_module(model, layer.name)).detach().float()
    rows = weight.abs().amax(1)
    std, mean = torch.std_mean(weight)
    kurtosis = ((weight - mean) / std.clamp(min=1e-12)).pow(4).mean().item() - 3
    return LayerStats(
        weight_min=weight.min().item(),
        weight_max=weight.max().item(),
        weight_kurtosis=kurtosis,
        channel_range_ratio=(rows.max() / rows.median().clamp(min=1e-12)).item(),
        input_absmax=None if found is None else found.absmax,
        outlier_ratio=None if found is None else found.outlier_ratio,
        outliers=None if found is None or layer.kind == "conv2d" else found.outliers,
    )
