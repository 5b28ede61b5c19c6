"""Bytes of a layer as the checkpoint stores it. One convention: weight + scales + zero points + bias + static scale.

Codes of fewer than 8 bits are packed densely into words of 32 bits, as compressed-tensors' `pack-quantized` has them: weights
along a row, zero points along the rows; the weight's shape is stored beside them.
"""

from __future__ import annotations

import torch

from autoquant.values import Layer, Scheme

SHAPE_BYTES = 16
"""Two int64: the shape that is stored beside a packed weight."""


def packed_words(codes: int, num_bits: int) -> int:
    """Words of 32 bits that so many codes take."""
    return -(-codes * num_bits // 32)


def dtype_bytes(name: str) -> int:
    dtype: torch.dtype = getattr(torch, name)
    return dtype.itemsize


def layer_bytes(layer: Layer, scheme: Scheme, base_dtype: str) -> int:
    """Bytes that `layer` takes under `scheme` in a model of `base_dtype` (bias and all scales are stored in that).

    A layer that shares its weight with another (`tied_to`) pays for its scales and bias, not for the weight again.
    """
    rows, width = layer.shape
    own_weight = layer.tied_to is None
    total = rows * dtype_bytes(base_dtype) if layer.has_bias else 0
    if scheme.dtype is not None:
        return total + (layer.params * dtype_bytes(scheme.dtype) if own_weight else 0)
    assert scheme.weights is not None
    scales, bits = rows if scheme.weights.strategy == "channel" else 1, scheme.weights.num_bits
    codes, zeros = layer.params, scales
    if scheme.is_packed:
        codes, zeros = 4 * rows * packed_words(width, bits) + SHAPE_BYTES, 4 * packed_words(scales, bits)
    total += codes if own_weight else 0
    total += scales * dtype_bytes(base_dtype) + (0 if scheme.weights.symmetric else zeros)
    return total + (dtype_bytes(base_dtype) if scheme.is_static else 0)
