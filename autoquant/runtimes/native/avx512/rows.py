"""What works row by row: normalisation, and the embedding table."""

from __future__ import annotations

import torch
from torch import Tensor

from autoquant.runtimes.native.avx512.library import is_bf16, kernels
from autoquant.runtimes.native.avx512.tape import call, dense

OUT_OF_RANGE = "index out of range: a token id is not a row of the embedding table"


class Norm:
    """LayerNorm, or RMSNorm without a bias, over the last dimension; computed in float32, stored in the input's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> None:
        self.weight = weight.detach().float().contiguous()
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.eps, self.rms, self.width = eps, rms, weight.numel()
        self._call = kernels().norm

    def __call__(self, x: Tensor) -> Tensor:
        x = dense(x)
        y = torch.empty_like(x)
        call(
            self._call, x.data_ptr(), self.weight.data_ptr(), None if self.bias is None else self.bias.data_ptr(), y.data_ptr(),
            x.numel() // self.width, self.width, self.eps, self.rms, is_bf16(x.dtype), torch.get_num_threads(),
        )  # fmt: skip
        return y


def embed(ids: Tensor, table: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Rows `ids` (…) int64 of an int8 table (rows, width), expanded to (…, width) `dtype`.

    Args:
        scale, zero_point: float32 (rows, 1).

    Raises:
        IndexError: an index is not a row of the table.
    """
    ids = dense(ids)
    y = torch.empty((*ids.shape, table.shape[1]), dtype=dtype)
    bad = call(
        kernels().embed, ids.data_ptr(), table.data_ptr(), scale.data_ptr(),
        None if zero_point is None else zero_point.data_ptr(), y.data_ptr(), ids.numel(), table.shape[1], table.shape[0],
        is_bf16(dtype), torch.get_num_threads(),
    )  # fmt: skip
    if bad:
        raise IndexError(OUT_OF_RANGE)
    return y
