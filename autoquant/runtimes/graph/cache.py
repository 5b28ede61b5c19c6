"""Decoding: graphs of calls with a cache of keys and values (transformers' `DynamicCache`).

A captured graph sees of the cache only how long it is. What a layer adds to it is one opaque node, which is lowered to
`append`: it writes behind the rows that are there, into memory with room for more, where `DynamicCache` copies all of them
for every token.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from autoquant.runtimes.native.avx512 import CachedAttention

NAME = "past_key_values"
"""The cache among the arguments of a call, here. A model's own name for it, and its outputs', may be the new one."""
NEW_NAME = "cache"
"""transformers' name since 5.24."""
ROOM = 256
"""Least number of rows by which the memory of a cache grows; otherwise by half."""


def name_of(forward: Callable[..., Any]) -> str:
    """What a model's forward calls its cache."""
    return NEW_NAME if NEW_NAME in inspect.signature(forward).parameters else NAME


def renamed(values: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """`values` in their order, one of them, if it is there, under another name."""
    return {new if name == old else name: value for name, value in values.items()}


def returned(kind: type) -> str:
    """What a class of outputs calls the cache."""
    names = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return NEW_NAME if NEW_NAME in names else NAME


@torch.library.custom_op("autoquant::append", mutates_args=())
def append_node(new: Tensor, past: Tensor | None, layer: int, part: int) -> Tensor:
    """Stands for the keys (part 0) or values (1) of a layer with `new` (batch, heads, rows, width) behind them."""
    raise RuntimeError(f"The cache of layer {layer} was run without being lowered.")


@append_node.register_fake
def _(new: Tensor, past: Tensor | None, layer: int, part: int) -> Tensor:
    rows = new.shape[-2] + (0 if past is None else past.shape[-2])
    return new.new_empty((*new.shape[:-2], rows, new.shape[-1]))


def length_of(cache: Any) -> int | None:
    """Rows in a cache that a graph can continue; None of any other cache."""
    if type(cache) is not DynamicCache or cache.offloading:
        return None
    lengths = {0} if not cache.layers else set()
    for layer in cache.layers:
        if type(layer) is not DynamicLayer:
            return None
        lengths.add(layer.keys.shape[-2] if layer.is_initialized and layer.keys.dim() == 4 else 0)  # type: ignore[union-attr]
    return lengths.pop() if len(lengths) == 1 else None


def traced(past: Tensor | None, layers: int) -> DynamicCache:
    """A cache to capture with, all of whose layers have the length of `past`."""
    cache = DynamicCache()
    cache.layers = [_Traced(past, index) for index in range(layers)]
    return cache


class _Traced(DynamicLayer):
    def __init__(self, past: Tensor | None, index: int) -> None:
        super().__init__()
        self.past, self.index = past, index
        if past is not None:
            self.keys = self.values = past
            self.is_initialized, self.dtype, self.device = True, past.dtype, past.device

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = (
            append_node(new, self.past, self.index, part) for part, new in enumerate((key_states, value_states))
        )
        return keys, values


@dataclass
class _Room:
    """Memory (batch, heads, capacity, width) of which the first `filled` rows are somebody's cache."""

    memory: Tensor
    filled: int

    def grow(self, rows: int) -> Tensor:
        """The cache with the `rows` rows behind it that have been written."""
        self.filled += rows
        found = self.memory[:, :, : self.filled]
        found._autoquant_room = self  # type: ignore[attr-defined]
        return found


def append(cache: DynamicCache, new: Tensor, layer: int, part: int) -> Tensor:
    """What `DynamicLayer.update` does for the keys (part 0) or values (1) of one layer.

    Args:
        new: (batch, heads, rows, width).

    Returns:
        (batch, heads, all rows, width), which is in the cache from now on.
    """
    own, name = _layer(cache, layer, new), ("keys", "values")[part]
    batch, heads, rows, width = new.shape
    room = _room(getattr(own, name), (batch, heads, rows, width), new)
    room.memory[:, :, room.filled : room.filled + rows] = new
    found = room.grow(rows)
    setattr(own, name, found)
    return found


def attend(
    cache: DynamicCache, layer: int, kernel: CachedAttention, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None
) -> Tensor:
    """`append` of the keys and values in a product, and attention: (batch, rows, columns) → (batch, rows, heads · width)."""
    own = _layer(cache, layer, x)
    shape = (x.shape[0], kernel.heads[1], x.shape[1], kernel.width)
    keys, values = _room(own.keys, shape, x), _room(own.values, shape, x)
    y = kernel(x, cos, sin, keys.memory, values.memory, keys.filled, mask)
    own.keys, own.values = keys.grow(shape[2]), values.grow(shape[2])
    return y


def _layer(cache: DynamicCache, layer: int, like: Tensor) -> Any:
    while len(cache.layers) <= layer:
        cache.layers.append(DynamicLayer())
    own: Any = cache.layers[layer]
    if not own.is_initialized:
        own.lazy_initialization(like, like)
    return own


def _room(past: Tensor, shape: tuple[int, int, int, int], like: Tensor) -> _Room:
    """Memory that holds `past` and has room for `shape` behind it."""
    rows = past.shape[2] if past.dim() == 4 else 0
    batch, heads, new, width = shape
    room: _Room | None = getattr(past, "_autoquant_room", None)
    # a copy of the tensor has left its memory; where two caches share a beginning, the second to grow finds it filled
    own = room is not None and room.filled == rows and room.memory.data_ptr() == past.data_ptr()
    if room is not None and own and rows + new <= room.memory.shape[2]:
        return room
    room = _Room(like.new_empty(batch, heads, rows + new + max(ROOM, rows // 2), width), rows)
    if rows:
        room.memory[:, :, :rows] = past
    return room
