"""Attention and rotary positions. Each kernel takes a struct, which is made once for a geometry."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from autoquant.runtimes.native.avx512.library import Attention, Rotary, is_bf16, kernels
from autoquant.runtimes.native.avx512.tape import dense, note, recorded


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(scale · q kᵀ + mask) v, as torch's scaled_dot_product_attention, with key heads shared by query heads.

    Args:
        q: (batch, heads, queries, width), k, v: (batch, key heads, keys, width), the last dimension dense.
        mask: bool (True: attend) or float, broadcast to (batch, heads, queries, keys).

    Returns:
        (batch, heads, queries, width), laid out so that its transpose (1, 2) is dense.
    """
    batch, heads, queries, width = q.shape
    q, k, v = (t if t.stride(-1) == 1 else dense(t) for t in (q, k, v))
    y = q.new_empty(batch, queries, heads, width)
    kind, strides = 0, NOWHERE
    if mask is not None:
        mask = readable(mask, (batch, heads, queries, k.shape[2]))
        kind, strides = MASKS[mask.dtype], mask.stride()
    found = _attention_call(
        q.shape, k.shape, q.stride(), k.stride(), v.stride(), strides, scale, causal, is_bf16(q.dtype), kind,
        threading.get_ident(),
    )  # fmt: skip
    found.q, found.k, found.v, found.y = q.data_ptr(), k.data_ptr(), v.data_ptr(), y.data_ptr()
    found.mask = None if mask is None else mask.data_ptr()
    run(found, [q, k, v, y, mask])
    return y.transpose(1, 2)


@dataclass(frozen=True)
class PackedHeads:
    """Queries, keys and values that lie side by side in the columns of one product.

    Attributes:
        starts: the first column of each. heads: of each; query heads share key heads. width: of a head.
    """

    starts: tuple[int, ...]
    heads: tuple[int, ...]
    width: int
    causal: bool
    scale: float | None


class PackedAttention(PackedHeads):
    """Attention of the heads of one product."""

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (batch, length, columns), mask as for `attention` → (batch, length, heads · width)."""
        batch, length, columns = x.shape
        q, k, _ = self.heads
        kind, strides = 0, NOWHERE
        if mask is not None:
            mask = readable(mask, (batch, q, length, length))
            kind, strides = MASKS[mask.dtype], mask.stride()
        axes = (length * columns, self.width, columns, 1)
        bf16 = is_bf16(x.dtype)
        found = _attention_call(
            (batch, q, length, self.width), (batch, k, length), axes, axes, axes, strides, self.scale, self.causal, bf16, kind,
            threading.get_ident(),
        )  # fmt: skip
        y = x.new_empty(batch, length, q * self.width)
        start, size = x.data_ptr(), 2 if bf16 else 4
        found.q, found.k, found.v = (start + size * column for column in self.starts)
        found.y, found.mask = y.data_ptr(), None if mask is None else mask.data_ptr()
        run(found, [x, y, mask])
        return y


def readable(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """A mask that the kernel reads: bool, float32 or bfloat16, its last dimension dense (or, of bools, one for all)."""
    if mask.dtype not in MASKS:
        given, mask = mask, mask.float()
        note(mask.copy_, given)
    mask = mask.expand(shape)
    return mask if mask.stride(-1) == 1 or (mask.dtype is torch.bool and mask.stride(-1) == 0) else dense(mask)


NOWHERE: tuple[int, ...] = (0, 0, 0, 0)
MASKS = {torch.bool: 1, torch.float32: 2, torch.bfloat16: 3}


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x · cos + rotate_half(x) · sin.

    Args:
        x: (batch, heads, rows, width), the last dimension dense. cos, sin: (batch or 1, 1, rows, width), of its dtype.

    Returns:
        (batch, heads, rows, width), dense.
    """
    rows, width = x.shape[2:]
    x, cos, sin = x if x.stride(-1) == 1 else dense(x), dense(cos), dense(sin)
    y = x.new_empty(x.shape)
    strides = (*x.stride()[:3], *y.stride()[:2], 0 if cos.shape[0] == 1 else rows * width)
    found = _rotary_call(x.shape, strides, is_bf16(x.dtype), threading.get_ident())
    found.x, found.cos, found.sin, found.y = x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr()
    run(found, [x, cos, sin, y])
    return y


@functools.lru_cache(256)
def _rotary_call(shape: tuple[int, ...], strides: tuple[int, ...], bf16: bool, thread: int) -> _RotaryCall:
    call = _RotaryCall(None, None, None, None, *shape, *strides, bf16)
    call.address, call.run = ctypes.addressof(call), kernels().rotary
    return call


class _RotaryCall(Rotary):
    address: int
    run: Callable[..., None]


class _AttentionCall(Attention):
    address: int
    run: Callable[..., None]


class _Kept:
    """A call of a kernel that takes a struct; its arguments live as long as it does."""

    def __init__(self, struct: _AttentionCall | _RotaryCall, tensors: list[Tensor | None]) -> None:
        self.struct, self.tensors = type(struct).from_buffer_copy(struct), tensors
        self.run, self.address = struct.run, ctypes.addressof(self.struct)
        self.threads = torch.get_num_threads()

    def __call__(self) -> None:
        self.run(self.address, self.threads)


def run(struct: _AttentionCall | _RotaryCall, tensors: list[Tensor | None]) -> None:
    """Run the kernel. The struct serves every call of its geometry by this thread, so a tape gets a copy."""
    if recorded():
        note(_Kept(struct, tensors))
    struct.run(struct.address, torch.get_num_threads())


@functools.lru_cache(256)
def _attention_call(
    q: tuple, k: tuple, q_strides: tuple, k_strides: tuple, v_strides: tuple, mask_strides: tuple, scale: float | None,
    causal: bool, bf16: bool, kind: int, thread: int,
) -> _AttentionCall:  # fmt: skip
    """What is the same in every call of one geometry by one thread; the pointers are filled in by each."""
    batch, heads, queries, width = q
    strides = [axes[i] for axes in (q_strides, k_strides, v_strides) for i in (0, 2, 1)]
    call = _AttentionCall(
        None, None, None, None, None, batch, heads, heads // k[1], queries, k[2], width, *strides, *mask_strides,
        width**-0.5 if scale is None else scale, causal, bf16, kind,
    )  # fmt: skip
    call.address, call.run = ctypes.addressof(call), kernels().attention
    return call
