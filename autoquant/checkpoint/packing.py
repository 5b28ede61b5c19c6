"""Codes of fewer than 8 bits as a checkpoint packs them: compressed-tensors' `pack-quantized`, by its own functions.

They take int32 for every code, so a large weight goes through them some rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

AT_ONCE = 2**18
"""Codes."""


def pack(codes: Tensor, num_bits: int) -> Tensor:
    """int32 (rows, words) of int8 codes (rows, width), densely along each row."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return torch.cat([pack_to_int32(some, num_bits) for some in codes.split(_rows(codes.shape[1]))])


def unpack(words: Tensor, num_bits: int, shape: Sequence[int]) -> Tensor:
    """int8 codes of this shape (rows, width) from int32 (rows, words)."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    rows, width = shape
    found = torch.empty((rows, width), dtype=torch.int8, device=words.device)
    at_once = _rows(width)
    for into, some in zip(found.split(at_once), words.split(at_once), strict=True):
        into.copy_(unpack_from_int32(some, num_bits, torch.Size(into.shape)))
    return found


def pack_zero_point(zero_point: Tensor, num_bits: int) -> Tensor:
    """int32 (words, 1) of int8 (rows, 1), along the rows."""
    return pack(zero_point.t(), num_bits).t()


def unpack_zero_point(words: Tensor, num_bits: int, rows: int) -> Tensor:
    """int8 (rows, 1) of int32 (words, 1)."""
    return unpack(words.t(), num_bits, (1, rows)).t()


def _rows(width: int) -> int:
    return max(1, AT_ONCE // width)
