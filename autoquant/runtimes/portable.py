"""A layer that another engine is to run: its stored tensors, and one opaque operation in its place in the graph.

Whoever traces or exports a model with such layers finds the operation `autoquant::layer(x, number)` where each of them was,
and writes what `LayerTensors` holds in that place. No pattern has to be recognised in a graph and no weight to be searched for.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoquant.errors import ModelError, SchemeError
from autoquant.runtimes.base import Runtime, cannot_have
from autoquant.runtimes.torch_runtime import TorchRuntime
from autoquant.schemes import QuantizedTensor
from autoquant.values import Layer, Scheme

OPERATION = "autoquant::layer"


@dataclass(frozen=True, eq=False)
class LayerTensors:
    """All that a layer's graph is written from.

    Attributes:
        weight: codes (out, in) with scales, or the float matrix (out, in) in the scheme's dtype.
        bias: (out,) in the base dtype.
        input_scale: (1,) in the base dtype, for a static scheme.
        geometry: of a Conv2d: kernel_size, stride, padding, dilation; otherwise empty.
    """

    layer: Layer
    scheme: Scheme
    weight: QuantizedTensor | Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    base_dtype: torch.dtype
    geometry: dict[str, Any]

    def empty_output(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Zeros of the shape that this layer gives for `x`; the shape may be symbolic."""
        out, width = self.layer.shape
        if self.layer.kind == "embedding":
            return x.new_zeros((*x.shape, width), dtype=dtype)
        if self.layer.kind == "conv2d":
            weight = x.new_zeros((out, x.shape[1], *self.geometry["kernel_size"]), dtype=x.dtype)
            how = {key: value for key, value in self.geometry.items() if key != "kernel_size"}
            return F.conv2d(x, weight, **how).to(dtype)
        return x.new_zeros((*x.shape[:-1], out), dtype=dtype)


class PortableLayer(nn.Module):
    """Holds a `LayerTensors`. Inside `recording` it is one operation that gives zeros; else it computes as `torch` does.

    `number` identifies it in a recorded graph, within this process: see `tensors_of`.
    """

    marker: Tensor

    def __init__(self, tensors: LayerTensors) -> None:
        super().__init__()
        self.tensors = tensors
        self.scheme_name = tensors.scheme.name
        self.number = next(_NUMBERS)
        self._built: list[Any] = []  # in a list: not a child, whose tensors would be the model's
        self.register_buffer("marker", torch.empty(0, dtype=tensors.base_dtype), persistent=False)
        _LAYERS[self.number] = self

    def forward(self, x: Tensor) -> Tensor:
        return self.recorded(x) if _RECORDING else self.run(x)

    def recorded(self, x: Tensor) -> Tensor:
        """The operation that stands for this layer in a graph."""
        return torch.ops.autoquant.layer(x, self.number)

    def run(self, x: Tensor) -> Tensor:
        if not self._built:
            s = self.tensors
            weight = s.weight
            self._built.append(
                TorchRuntime().build(
                    s.layer, s.scheme, _Shell(s), weight, base_dtype=s.base_dtype, input_scale=s.input_scale
                )
            )
        return self._built[0](x)

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
    module: type[PortableLayer] = PortableLayer

    def supports(self, layer: Layer, scheme: Scheme) -> str | None:
        return cannot_have(layer, scheme)

    def build(
        self,
        layer: Layer,
        scheme: Scheme,
        module: nn.Module,
        weight: QuantizedTensor | Tensor,
        *,
        base_dtype: torch.dtype,
        input_scale: Tensor | None = None,
    ) -> nn.Module:
        if reason := self.supports(layer, scheme):
            raise SchemeError(f"The {self.name} runtime cannot run '{scheme.name}' on layer '{layer.name}': {reason}.")
        if scheme.is_static and input_scale is None:
            raise SchemeError("A static activation scheme needs a calibrated input scale.")
        bias = getattr(module, "bias", None)
        names = ("kernel_size", "stride", "padding", "dilation") if layer.kind == "conv2d" else ()
        geometry = {name: getattr(module, name) for name in names}
        return self.module(
            LayerTensors(
                layer=layer,
                scheme=scheme,
                weight=weight.detach() if isinstance(weight, Tensor) else weight,
                bias=None if bias is None else bias.detach().to(base_dtype),
                input_scale=input_scale,
                base_dtype=base_dtype,
                geometry=geometry,
            )
        ).eval()

    def description(self) -> str:
        return f"layers for export, torch {torch.__version__}"


@contextmanager
def recording() -> Iterator[None]:
    """In here layers are operations of a graph that is being recorded, and nothing is computed."""
    _RECORDING.append(True)
    try:
        yield
    finally:
        _RECORDING.pop()


def tensors_of(number: int) -> LayerTensors:
    """The layer behind an operation of a recorded graph."""
    return _LAYERS[number].tensors


def base_dtype(model: nn.Module) -> str:
    """The dtype of the activations between the layers of a model, the one that an engine is to compute floats in.

    Raises:
        SchemeError: a float layer is of another dtype than that; an engine has one for a whole graph.
        ModelError: several base dtypes.
    """
    layers = [module for module in model.modules() if isinstance(module, PortableLayer)]
    found = {str(layer.tensors.base_dtype).removeprefix("torch.") for layer in layers}
    if not found:
        found = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    if len(found) != 1:
        raise ModelError(f"The model mixes the base dtypes {', '.join(sorted(found))}; a graph has one.")
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


_RECORDING: list[bool] = []
_NUMBERS = itertools.count()
_LAYERS: weakref.WeakValueDictionary[int, PortableLayer] = weakref.WeakValueDictionary()


def _recorded(x: Tensor, number: int) -> Tensor:
    """Zeros: a graph is recorded for its shapes."""
    layer = _LAYERS[number]
    return layer.tensors.empty_output(x, layer.marker.dtype)


_LIBRARY = torch.library.Library("autoquant", "DEF")
_LIBRARY.define("layer(Tensor x, int number) -> Tensor")
torch.library.impl(_LIBRARY, "layer", "CompositeExplicitAutograd")(_recorded)
torch.library.register_fake("autoquant::layer", _recorded, lib=_LIBRARY)
