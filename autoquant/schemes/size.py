"""Bytes of a layer as the checkpoint stores it. One convention: weight + scales + zero points + bias + static scale."""

from __future__ import annotations

import torch

from autoquant.values import Layer, Scheme


def dtype_bytes(name: str) -> int:
    dtype: torch.dtype = getattr(torch, name)
    return dtype.itemsize


def layer_bytes(layer: Layer, scheme: Scheme, base_dtype: str) -> int:
    """Bytes that `layer` takes under `scheme` in a model of `base_dtype` (bias and all scales are stored in that).

    A layer that shares its weight with another (`tied_to`) pays for its scales and bias, not for the weight again.
    """
    rows, _ = layer.shape
    own_weight = layer.tied_to is None
    total = rows * dtype_bytes(base_dtype) if layer.has_bias else 0
    if scheme.dtype is not None:
        return total + (layer.params * dtype_bytes(scheme.dtype) if own_weight else 0)
    assert scheme.weights is not None
    scales = rows if scheme.weights.strategy == "channel" else 1
    total += layer.params if own_weight else 0
    total += scales * dtype_bytes(base_dtype) + (0 if scheme.weights.symmetric else scales)
    return total + (dtype_bytes(base_dtype) if scheme.is_static else 0)
