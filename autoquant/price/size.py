"""Bytes of every choice. See `values.Price` for what counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from autoquant.models.layers import Inventory, get_module
from autoquant.schemes import SCHEMES, dtype_bytes, layer_bytes, project


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
    """Bytes of the parameters and persistent buffers that belong to no layer; floats in the base dtype."""
    owned = {id(p) for layer in inventory.layers for p in get_module(model, layer.name).parameters(recurse=False)}
    seen: set[int] = set()
    total = 0
    for tensor in model.state_dict(keep_vars=True).values():
        if id(tensor) in owned or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        total += tensor.numel() * (dtype_bytes(base_dtype) if tensor.is_floating_point() else tensor.element_size())
    return total
