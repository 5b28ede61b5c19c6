"""Layers that another engine is to run: their stored tensors, from which the engine's graph is written.

In a captured graph (`graph.capture`) each of them is one opaque node with its name. Whoever lowers the graph writes what
`LayerTensors` holds in that place: no pattern has to be recognised, and no weight to be searched for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.errors import ModelError, SchemeError
from autoquant.models.layers import get_module, set_modules, share, survey, weight_matrix
from autoquant.runtimes.base import Runtime
from autoquant.runtimes.operators import window
from autoquant.runtimes.torch_runtime import TorchRuntime
from autoquant.schemes import SCHEMES, QuantizedTensor, dequantize
from autoquant.values import Layer, Scheme


@dataclass(frozen=True, eq=False)
class LayerTensors:
    """All that a layer's graph is written from.

    Attributes:
        weight: codes (out, in) with scales, or the float matrix (out, in) in the scheme's dtype.
        bias: (out,) in the base dtype.
        input_scale: (1,) in the base dtype, for a static scheme.
        outliers: int32 (some,) channels of the input, for a scheme that has them.
        geometry: of a Conv2d: kernel_size, stride, padding, dilation; otherwise empty.
    """

    layer: Layer
    scheme: Scheme
    weight: QuantizedTensor | Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    base_dtype: torch.dtype
    geometry: dict[str, Any]
    outliers: Tensor | None = None

    @property
    def inliers(self) -> Tensor:
        """float32 (in,): 0 for an outlier channel, 1 for all others."""
        found = torch.ones(self.layer.shape[1])
        if self.outliers is not None:
            found[self.outliers.long()] = 0.0
        return found

    @property
    def outlier_weight(self) -> Tensor:
        """float32 (out, some): the weight of the outlier channels, expanded."""
        assert self.outliers is not None and isinstance(self.weight, QuantizedTensor)
        values = self.weight.values.index_select(1, self.outliers.long())
        return dequantize(replace(self.weight, values=values), torch.float32)

    @property
    def window(self) -> tuple[list[int], list[int]]:
        """Of a Conv2d, see `operators.window`."""
        return window(**self.geometry)

    def output_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """Of this layer for an input of this shape."""
        out, width = self.layer.shape
        if self.layer.kind == "embedding":
            return (*shape, width)
        if self.layer.kind == "conv2d":
            sizes = [(n - r) // s + 1 for n, s, r in zip(shape[2:], *self.window, strict=True)]
            return (shape[0], out, *sizes)
        return (*shape[:-1], out)


class PortableLayer(nn.Module):
    """Holds a `LayerTensors`; called by itself it computes as `torch` does."""

    marker: Tensor

    def __init__(self, tensors: LayerTensors) -> None:
        super().__init__()
        self.tensors = tensors
        self.scheme_name = tensors.scheme.name
        self._built: list[Any] = []  # in a list: not a child, whose tensors would be the model's
        self.register_buffer("marker", torch.empty(0, dtype=tensors.base_dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self._built:
            s = self.tensors
            self._built.append(
                TorchRuntime().build(
                    s.layer,
                    s.scheme,
                    _Shell(s),
                    s.weight,
                    base_dtype=s.base_dtype,
                    input_scale=s.input_scale,
                    outliers=s.outliers,
                )
            )
        return self._built[0](x)

    @property
    def dtype(self) -> torch.dtype:
        """Of its output; follows the model when that is cast, as the tensors do not."""
        return self.marker.dtype

    @property
    def weight(self) -> Tensor:
        """Models read the weight's dtype to cast their pixels; the activations are in the base dtype."""
        return self.marker

    def __deepcopy__(self, memo: dict[int, Any]) -> PortableLayer:
        """Another layer over the same tensors, which nobody changes."""
        copied = type(self)(self.tensors)
        copied.marker = self.marker.clone()
        return copied.eval()

    def extra_repr(self) -> str:
        return f"{self.tensors.layer.shape[1]}, {self.tensors.layer.shape[0]}, {self.scheme_name}"


class PortableRuntime(Runtime):
    """Builds layers to be exported."""

    name = "portable"
    builds_floats = True
    module: type[PortableLayer] = PortableLayer

    def build(
        self,
        layer: Layer,
        scheme: Scheme,
        module: nn.Module,
        weight: QuantizedTensor | Tensor,
        *,
        base_dtype: torch.dtype,
        input_scale: Tensor | None = None,
        outliers: Tensor | None = None,
    ) -> nn.Module:
        self.require(layer, scheme, input_scale, outliers)
        bias = getattr(module, "bias", None)
        names = ("kernel_size", "stride", "padding", "dilation") if layer.kind == "conv2d" else ()
        return self.module(
            LayerTensors(
                layer=layer,
                scheme=scheme,
                weight=weight.detach() if isinstance(weight, Tensor) else weight,
                bias=None if bias is None else bias.detach().to(base_dtype),
                input_scale=input_scale,
                base_dtype=base_dtype,
                geometry={name: getattr(module, name) for name in names},
                outliers=outliers,
            )
        ).eval()

    def description(self) -> str:
        return f"layers for export, torch {torch.__version__}"


def ported(model: nn.Module) -> nn.Module:
    """A copy of `model` that computes in float32 and whose every layer is a `PortableLayer`, over the same tensors.

    It is there to be captured: engines write the layers as they are stored, and all else in float32.
    """
    copied = share(model)
    copied.__dict__.pop("forward", None)
    runtime, built = PortableRuntime(), {}
    for layer in survey(copied).layers:
        module = get_module(copied, layer.name)
        weight = weight_matrix(module).detach()
        scheme = SCHEMES[str(weight.dtype).removeprefix("torch.")]
        built[layer.name] = runtime.build(layer, scheme, module, weight, base_dtype=weight.dtype)
    set_modules(copied, built)
    # Of nn.Module: transformers' own method refuses a model that was loaded from quantized weights.
    return nn.Module.float(copied).eval()


def base_dtype(model: nn.Module) -> str:
    """The dtype of the activations between the layers of a `ported` model, the one that an engine is to compute floats in.

    Raises:
        SchemeError: a float layer is of another dtype than that; an engine has one for a whole graph.
        ModelError: several base dtypes.
    """
    layers = [module for module in model.modules() if isinstance(module, PortableLayer)]
    found = {str(layer.tensors.base_dtype).removeprefix("torch.") for layer in layers}
    if len(found) != 1:
        raise ModelError(f"The model mixes the base dtypes {', '.join(sorted(found)) or '(none)'}; a graph has one.")
    base = found.pop()
    for layer in layers:
        own = layer.tensors.scheme.dtype
        if own is not None and own != base:
            raise SchemeError(
                f"Layer '{layer.tensors.layer.name}' runs in {own} in a {base} model, and a graph of another engine computes "
                f"all float layers alike. Give the layer '{base}' or an int8 scheme."
            )
    return base


class _Shell(nn.Module):
    """What `TorchRuntime.build` reads of a float module."""

    kernel_size: tuple[int, int]

    def __init__(self, t: LayerTensors) -> None:
        super().__init__()
        self.bias = t.bias
        self.groups = 1
        for name, value in t.geometry.items():
            setattr(self, name, value)
        if t.layer.kind == "conv2d":
            channels = t.layer.shape[1] // (self.kernel_size[0] * self.kernel_size[1])
            self.weight = torch.empty((t.layer.shape[0], channels, *self.kernel_size), device="meta")
