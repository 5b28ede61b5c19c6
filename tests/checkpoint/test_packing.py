"""Codes of fewer than 8 bits lie in a file as compressed-tensors packs them."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given

from autoquant.checkpoint.packing import pack, pack_zero_point, unpack, unpack_zero_point
from autoquant.schemes import packed_words


@pytest.mark.parametrize("num_bits", [4, 6])
@given(rows=st.integers(1, 9), width=st.integers(1, 100), seed=st.integers(0, 2**32))
def test_words_are_those_of_compressed_tensors_and_come_back(num_bits: int, rows: int, width: int, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (num_bits - 1)), 2 ** (num_bits - 1), (rows, width), generator=make, dtype=torch.int8)
    words = pack(codes, num_bits)
    assert words.shape == (rows, packed_words(width, num_bits)) and words.dtype == torch.int32
    assert torch.equal(words, pack_to_int32(codes, num_bits))
    assert torch.equal(unpack(words, num_bits, codes.shape), codes)
    assert torch.equal(unpack_from_int32(words, num_bits, codes.shape), codes)
    zeros = codes[:, :1]
    along = pack_zero_point(zeros, num_bits)
    assert torch.equal(along, pack_to_int32(zeros, num_bits, packed_dim=0))
    assert torch.equal(unpack_zero_point(along, num_bits, rows), zeros)
