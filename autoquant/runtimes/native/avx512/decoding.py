"""Attention of a step of decoding, from the product of a layer to its heads side by side, in one call."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from autoquant.runtimes.native.avx512.attention import MASKS, NOWHERE, PackedHeads, readable
from autoquant.runtimes.native.avx512.library import Attention, Cached, Rotary, is_bf16, kernels
from autoquant.runtimes.native.avx512.tape import dense


class CachedAttention(PackedHeads):
    """Attention of the heads of one product: queries and keys are rotated, keys and values written behind a cache's."""

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, filled: int, mask: Tensor | None
    ) -> Tensor:
        """
        Args:
            x: (batch, length, columns), dense. cos, sin: (batch or 1, 1, length, width), of its dtype.
            keys, values: (batch, key heads, capacity, width), dense, of which the first `filled` rows are the cache.
            mask: as for `attention`, of the keys that are then there.

        Returns:
            (batch, length, heads · width)
        """
        batch, length, columns = x.shape
        heads = self.heads[0]
        cos, sin, bf16 = dense(cos), dense(sin), is_bf16(x.dtype)
        kind, strides = 0, NOWHERE
        if mask is not None:
            mask = readable(mask, (batch, heads, length, filled + length))
            kind, strides = MASKS[mask.dtype], mask.stride()
        call = _call(
            (batch, length, columns), self.heads, self.width, keys.shape[2], cos.shape[0] == 1, self.causal, self.scale, bf16,
            threading.get_ident(),
        )  # fmt: skip
        both = x.new_empty(2, batch, length, heads * self.width)  # rotated queries, and what is returned
        rotated, y = both.unbind()
        size = 2 if bf16 else 4
        q, k, v, attend = call.q, call.k, call.v, call.attend
        q.x, k.x, v.x = (x.data_ptr() + size * column for column in self.starts)
        q.cos = k.cos = cos.data_ptr()
        q.sin = k.sin = sin.data_ptr()
        q.y = attend.q = rotated.data_ptr()
        attend.k, attend.v, attend.y = keys.data_ptr(), values.data_ptr(), y.data_ptr()
        k.y, v.y = attend.k + size * filled * self.width, attend.v + size * filled * self.width
        attend.keys, attend.mask, attend.mask_kind = filled + length, None if mask is None else mask.data_ptr(), kind
        attend.m_batch, attend.m_head, attend.m_row, attend.m_key = strides
        call.run(call.address, torch.get_num_threads())
        return y


class _CachedCall(Cached):
    address: int
    run: Callable[..., None]


@functools.lru_cache(256)
def _call(
    shape: tuple[int, int, int], of: tuple[int, ...], width: int, capacity: int, shared: bool, causal: bool,
    scale: float | None, bf16: bool, thread: int,
) -> _CachedCall:  # fmt: skip
    """What is the same in every step of one geometry by one thread."""
    batch, length, columns = shape
    heads, groups, _ = of
    product = (length * columns, width, columns)
    rotated, cached = (heads * length * width, length * width), (groups * capacity * width, capacity * width)
    turns = 0 if shared else length * width

    def rotary(count: int, to: tuple[int, int]) -> Rotary:
        return Rotary(None, None, None, None, batch, count, length, width, *product, *to, turns, bf16)

    memory = (cached[0], width, cached[1])
    attend = Attention(
        None, None, None, None, None, batch, heads, heads // groups, length, 0, width, rotated[0], width, rotated[1], *memory,
        *memory, *NOWHERE, width**-0.5 if scale is None else scale, causal, bf16, 0,
    )  # fmt: skip
    call = _CachedCall(rotary(heads, rotated), rotary(groups, cached), rotary(groups, cached), attend)
    call.address, call.run = ctypes.addressof(call), kernels().cached_attention
    return call
