"""The tensors of a checkpoint, and their bytes.

One convention for every format. A quantized layer NAME stores

    NAME.weight             int8, in the module's own layout (a Conv1D's is (in, out), a Conv2d's four-dimensional)
    NAME.weight_scale       base dtype, (out, 1) per channel or (1,) per tensor
    NAME.weight_zero_point  int8, of the shape of the scale; asymmetric schemes only
    NAME.input_scale        base dtype, (1,): calibrated absmax / 127.5, rounded up; static schemes only
    NAME.bias               base dtype

of which a layer whose weight has fewer than 8 bits stores otherwise (compressed-tensors' `pack-quantized`, see `packing`)

    NAME.weight_packed      int32 (out, words) instead of NAME.weight, of the matrix (out, in) whatever the module's own layout
    NAME.weight_zero_point  int32 (words, 1)
    NAME.weight_shape       int64 (2,): out, in

A layer in the base dtype is stored as everything else is: cast, unless the model wants it in float32. Whatever is shared
is stored once, under its first name in `named_modules()`: of layers that share a quantized weight the first stores the
codes, and each stores a scale of its own (readers tie weights, but not scales).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoquant.checkpoint.apply import schemes_of
from autoquant.checkpoint.packing import pack, pack_zero_point
from autoquant.models.layers import cast_floats, get_module, inspect, share, weight_matrix
from autoquant.schemes import QuantizedTensor, quantize, static_scale
from autoquant.values import Layer, LayerMap, Scheme

COMPANIONS = ("weight_scale", "weight_zero_point", "input_scale")


@dataclass(frozen=True)
class Payload:
    """Tensors ready to be stored, contiguous and on the CPU, and what each layer's share of them is in bytes."""

    tensors: Mapping[str, Tensor]
    layer_bytes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def payload(model: nn.Module, layer_map: LayerMap) -> Payload:
    """What a checkpoint of `model` (float32, left unchanged) under `layer_map` stores.

    Raises:
        NumericsError: a weight to be quantized holds NaN or infinity.
    """
    base = getattr(torch, layer_map.base_dtype)
    layers = inspect(model).layers
    schemes = {name: one for name, one in schemes_of(layers, layer_map).items() if one.dtype != layer_map.base_dtype}
    cast = cast_floats(share(model, "meta"), base)
    dtypes = {name: tensor.dtype for name, tensor in _own_tensors(cast)}
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    own_layers = {layer.name: layer for layer in layers}
    codes: dict[int, QuantizedTensor] = {}
    for full, tensor in _own_tensors(model):
        name, _, last = full.rpartition(".")
        scheme = schemes.get(name)
        if scheme is not None and last == "weight":
            module = get_module(model, name)
            if scheme.weights is not None:
                if id(tensor) not in codes:
                    codes[id(tensor)] = quantize(weight_matrix(module), scheme.weights, scale_dtype=base, name=full)
                tensors.update(_companions(name, scheme, codes[id(tensor)], layer_map, base))
            if scheme.is_packed:
                tensors |= _packed(name, scheme, codes[id(tensor)])
            elif id(tensor) not in stored:
                tensors[full] = _weight(tensor, own_layers[name], scheme, codes.get(id(tensor)))
        elif id(tensor) not in stored:
            dtype = base if scheme is not None and tensor.is_floating_point() else dtypes[full]
            tensors[full] = tensor.detach().to(dtype)
        stored.add(id(tensor))
    spent = dict.fromkeys(own_layers, 0)
    for full, tensor in tensors.items():
        if (name := full.rpartition(".")[0]) in spent:
            spent[name] += tensor.nbytes
    return Payload(_separate(tensors), spent)


def _own_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and persistent buffers by module; a tensor that several modules share comes once for each of them."""
    found: list[tuple[str, Tensor]] = []
    for prefix, module in model.named_modules():
        head = f"{prefix}." if prefix else ""
        found += [(head + name, p) for name, p in module._parameters.items() if p is not None]
        transient = module._non_persistent_buffers_set
        found += [(head + name, b) for name, b in module._buffers.items() if b is not None and name not in transient]
    return found


def _weight(tensor: Tensor, layer: Layer, scheme: Scheme, q: QuantizedTensor | None) -> Tensor:
    if q is None:
        return tensor.detach().to(getattr(torch, str(scheme.dtype)))
    return q.values.t() if layer.kind == "conv1d" else q.values.view(tensor.shape)


def _packed(name: str, scheme: Scheme, q: QuantizedTensor) -> dict[str, Tensor]:
    assert scheme.weights is not None
    return {
        f"{name}.weight_packed": pack(q.values, scheme.weights.num_bits),
        f"{name}.weight_shape": torch.tensor(q.values.shape),
    }


def _companions(
    name: str, scheme: Scheme, q: QuantizedTensor, layer_map: LayerMap, base: torch.dtype
) -> dict[str, Tensor]:
    assert scheme.weights is not None
    zero_point = q.zero_point
    if zero_point is not None and scheme.is_packed:
        zero_point = pack_zero_point(zero_point, scheme.weights.num_bits)
    found = {"weight_scale": q.scale, "weight_zero_point": zero_point}
    if scheme.is_static:
        found["input_scale"] = static_scale(layer_map.input_absmax[name], base, f"the input of {name}")
    return {f"{name}.{last}": tensor for last, tensor in found.items() if tensor is not None}


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, and each in memory of its own: safetensors refuses anything else."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result
