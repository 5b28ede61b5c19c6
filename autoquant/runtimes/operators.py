"""The operators that stand for a layer in a captured graph, whatever it is lowered to: native kernels or another engine's.

They have a shape and nothing else. Which module one stands for is looked up by its name when the graph is lowered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.custom_op("autoquant::layer", mutates_args=())
def layer(x: Tensor, name: str, width: int, dtype: torch.dtype) -> Tensor:
    """Stands for the module `name`: (…, in) → (…, width), or indices (…) → (…, width)."""
    raise RuntimeError(f"The node of layer '{name}' was run without being lowered.")


@layer.register_fake
def _(x: Tensor, name: str, width: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty((*(x.shape[:-1] if x.dtype.is_floating_point else x.shape), width), dtype=dtype)


def window(
    kernel_size: Sequence[int], stride: Sequence[int], padding: str | Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """(stride, reach) of a Conv2d: an axis of the image gives (size - reach) // stride + 1."""
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    named = {"valid": [0, 0], "same": [e - 1 for e in extent]}
    padded = named[padding] if isinstance(padding, str) else [2 * p for p in padding]
    return list(stride), [e - p for e, p in zip(extent, padded, strict=True)]


@torch.library.custom_op("autoquant::convolution", mutates_args=())
def convolution(x: Tensor, name: str, width: int, stride: list[int], reach: list[int], dtype: torch.dtype) -> Tensor:
    """Stands for the convolution `name`: (batch, channels, height, width) → (batch, width, rows, columns).

    Args:
        reach: how much larger than an axis of the image its kernel is, less the padding: rows = (height - reach) // stride + 1.
    """
    raise RuntimeError(f"The node of layer '{name}' was run without being lowered.")


@convolution.register_fake
def _(x: Tensor, name: str, width: int, stride: list[int], reach: list[int], dtype: torch.dtype) -> Tensor:
    sizes = [(size - reach[axis]) // stride[axis] + 1 for axis, size in enumerate(x.shape[2:])]
    return x.new_empty((x.shape[0], width, *sizes), dtype=dtype)


NODES = (torch.ops.autoquant.layer.default, torch.ops.autoquant.convolution.default)
