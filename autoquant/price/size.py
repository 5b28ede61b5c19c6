"""Bytes of every choice. See `values.Price` for what counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from autoquant.models.layers import Inventory, cast_floats, get_module, keeps_dtype, share
from autoquant.schemes import SCHEMES, layer_bytes, project


def price_bytes(
    model: nn.Module, inventory: Inventory, schemes: Mapping[str, Sequence[str]], base_dtypes: Sequence[str]
) -> tuple[dict[str, dict[str, dict[str, int]]], dict[str, int]]:
    """(base dtype → layer → scheme → bytes, base dtype → bytes of everything else).

    A layer that the model wants in float32 is stored so where nothing but the base dtype is asked of it.
    """
    layers: dict[str, dict[str, dict[str, int]]] = {}
    for base in base_dtypes:
        layers[base] = {}
        for layer in inventory.layers:
            kept = "float32" if keeps_dtype(model, f"{layer.name}.weight", getattr(torch, base)) else base
            layers[base][layer.name] = {
                **{name: layer_bytes(layer, project(SCHEMES[name], layer.kind), base) for name in schemes[layer.name]},
                base: layer_bytes(layer, SCHEMES[kept], kept),
            }
    return layers, {base: other_bytes(model, inventory, base) for base in base_dtypes}


def other_bytes(model: nn.Module, inventory: Inventory, base_dtype: str) -> int:
    """Bytes of the parameters and persistent buffers that belong to no layer, each once, in a model of `base_dtype`."""
    cast = cast_floats(share(model, "meta"), getattr(torch, base_dtype))
    owned = {id(p) for layer in inventory.layers for p in get_module(cast, layer.name).parameters(recurse=False)}
    rest = {id(tensor): tensor.nbytes for tensor in cast.state_dict(keep_vars=True).values() if id(tensor) not in owned}
    return sum(rest.values())
