"""Codes of fewer than 8 bits as a checkpoint packs them: densely, as compressed-tensors' `pack-quantized` has them.

32 codes lie in as many int32 words as a code has bits, each from its lowest bit on; a code may begin in one word and end in the
next. Written here and not called there: importing compressed-tensors takes 15 MB, more than all of a small packed model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from autoquant.schemes import packed_words

GROUP, WORD = 32, 32
"""Codes that are packed together, and bits of a word."""
AT_ONCE = 2**17
"""Codes that are gone through at once, to stay in the cache."""


def pack(codes: Tensor, num_bits: int) -> Tensor:
    """int32 (rows, words) of int8 codes (rows, width), along each row."""
    return torch.cat([_pack(some, num_bits) for some in codes.split(_rows(codes.shape[1]))])


def unpack(words: Tensor, num_bits: int, shape: Sequence[int]) -> Tensor:
    """int8 codes of this shape (rows, width) from int32 (rows, words)."""
    codes = torch.empty(tuple(shape), dtype=torch.int8, device=words.device)
    at_once = _rows(shape[1])
    for into, some in zip(codes.split(at_once), words.split(at_once), strict=True):
        into.copy_(_unpack(some, num_bits, shape[1]))
    return codes


def pack_zero_point(zero_point: Tensor, num_bits: int) -> Tensor:
    """int32 (words, 1) of int8 (rows, 1), along the rows."""
    return pack(zero_point.t(), num_bits).t()


def unpack_zero_point(words: Tensor, num_bits: int, rows: int) -> Tensor:
    """int8 (rows, 1) of int32 (words, 1)."""
    return unpack(words.t(), num_bits, (1, rows)).t()


def _rows(width: int) -> int:
    return max(1, AT_ONCE // width)


def _pack(codes: Tensor, num_bits: int) -> Tensor:
    rows, width = codes.shape
    groups, offset = -(-width // GROUP), 2 ** (num_bits - 1)
    codes = F.pad(codes, (0, groups * GROUP - width), value=-offset).view(rows, groups, GROUP)
    words = torch.zeros((rows, groups, num_bits), dtype=torch.int32, device=codes.device)
    for place in range(GROUP):
        word, bit = divmod(place * num_bits, WORD)
        code = codes[..., place].to(torch.int32) + offset
        words[..., word] |= code << bit
        if bit + num_bits > WORD:
            words[..., word + 1] |= code >> (WORD - bit)
    return words.view(rows, -1)[:, : packed_words(width, num_bits)]


def _unpack(words: Tensor, num_bits: int, width: int) -> Tensor:
    rows, groups, offset = len(words), -(-width // GROUP), 2 ** (num_bits - 1)
    words = F.pad(words, (0, groups * num_bits - words.shape[1])).view(rows, groups, num_bits)
    codes = torch.empty((rows, groups, GROUP), dtype=torch.int8, device=words.device)
    for place in range(GROUP):
        word, bit = divmod(place * num_bits, WORD)
        code = words[..., word] >> bit
        if bit + num_bits > WORD:
            low = (1 << (WORD - bit)) - 1  # a shift to the right repeats the sign
            code = (code & low) | (words[..., word + 1] << (WORD - bit))
        codes[..., place] = (code & (2**num_bits - 1)) - offset
    return codes.view(rows, -1)[:, :width]
