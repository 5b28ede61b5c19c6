"""Memory for weights: aligned, and in huge pages, of which a processor reads half as much again in a second."""

from __future__ import annotations

import ctypes
import threading

import torch
from torch import Tensor

HUGE = 2 * 2**20
BLOCK = 16 * 2**20
"""Bytes that are reserved at a time. What is not used yet takes no memory."""
SMALL = 2**14
LINE = 64
_MADV_HUGEPAGE = 14
_lock = threading.Lock()


class _Block:
    """The rest of the block that weights are now taken from. Each is a view of it, and the last one gone frees it."""

    memory = torch.empty(0, dtype=torch.uint8)
    used = 0


def aligned(size: int) -> Tensor:
    """uint8 (size,) that starts at a multiple of 64 bytes."""
    if size < SMALL:
        return _from(torch.empty(size + LINE, dtype=torch.uint8), LINE)[:size]
    with _lock:
        start = -(-_Block.used // LINE) * LINE
        if start + size > _Block.memory.numel():
            whole = max(BLOCK, -(-size // HUGE) * HUGE)
            _Block.memory, start = _from(torch.empty(whole + HUGE, dtype=torch.uint8), HUGE)[:whole], 0
            ctypes.CDLL(None).madvise(ctypes.c_void_p(_Block.memory.data_ptr()), ctypes.c_size_t(whole), _MADV_HUGEPAGE)
        _Block.used = start + size
        return _Block.memory[start : start + size]


def _from(memory: Tensor, multiple: int) -> Tensor:
    return memory[-memory.data_ptr() % multiple :]
