"""Bytes of every choice. See `values.Price` for what counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from autoquant.models.layers import Inventory, get_module, keeps_dtype
from autoquant.schemes import SCHEMES, layer_bytes, project


def price_bytes(
    model: nn.Module, inventory: Inventory, schemes: Mapping[str, Sequence[str]], base_dtypes: Sequence[str]
) -> tuple[dict[str, dict[str, dict[str, int]]], dict[str, int]]:
    """(base dtype → layer → scheme → bytes, base dtype → bytes of everything else)."""
    layers = {
        base: {
            layer.name: {
                name: layer_bytes(layer, project(SCHEMES[name], layer.kind), base)
                for name in {*schemes[layer.name], base}
            }
            for layer in inventory.layers
        }
        for base in base_dtypes
    }
    return layers, {base: other_bytes(model, inventory, base) for base in base_dtypes}


def other_bytes(model: nn.Module, inventory: Inventory, base_dtype: str) -> int:
    """Bytes of the parameters and persistent buffers that belong to no layer; floats in the base dtype, but for those
    that the model wants in float32."""
    dtype = getattr(torch, base_dtype)
    owned = {id(p) for layer in inventory.layers for p in get_module(model, layer.name).parameters(recurse=False)}
    seen: set[int] = set()
    total = 0
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in owned or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        cast = tensor.is_floating_point() and not (isinstance(tensor, nn.Parameter) and keeps_dtype(model, name, dtype))
        total += tensor.numel() * (dtype.itemsize if cast else tensor.element_size())
    return total
