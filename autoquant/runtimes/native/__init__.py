"""The portable passes of kernels.c around an int8 product, on torch tensors without copying. See `build` for how and when
they are compiled; where they cannot be, the runtime uses torch operations that compute the same.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor

from autoquant.runtimes.native.build import load_library

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-ffinite-math-only", "-fno-signed-zeros")
"""Divisions stay exact: a reciprocal would move codes that lie on a tie, as the largest value of each row does."""
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
_PARALLEL_FROM = 16_384
"""Elements below which waking a second thread costs more than it saves."""


def _library() -> ctypes.CDLL | None:
    return load_library(_SOURCE, _FLAGS)


def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether the compiled kernels can be used for activations of this dtype on this machine."""
    return dtype in _SUFFIX and _library() is not None


def quantize_rows(
    x: Tensor, *, scale: Tensor | None, per_row: bool, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `schemes.quantize_input` on a contiguous CPU matrix (rows, cols), and the sum of each row's codes.

    Args:
        scale: float32 (1,) static scale; None computes it: one a row if `per_row`, otherwise one for the matrix.

    Returns:
        codes int8 (rows, cols), scales float32 (rows,), sums int32 (rows,) or None.
    """
    library = _library()
    assert library is not None
    rows, cols = x.shape
    if scale is None and not per_row and rows:
        top = max(map(abs, torch.stack(torch.aminmax(x)).tolist()))
        if not math.isfinite(top):
            x = torch.full_like(x, math.nan)  # one scale for all rows: all of them are lost
        scale = torch.full((1,), top / 127.5 if top > 0 else 1.0)
    scales = torch.empty(rows)
    codes = torch.empty((rows, cols), dtype=torch.int8)
    sums = torch.empty(rows, dtype=torch.int32) if with_sums else None
    getattr(library, f"quantize_{_SUFFIX[x.dtype]}")(
        _pointer(x), _pointer(codes), _pointer(scales), _pointer(sums), _pointer(scale), ctypes.c_int64(rows),
        ctypes.c_int64(cols), _threads(x.numel()),
    )  # fmt: skip
    return codes, scales, sums


def finish(
    acc: Tensor, row_scales: Tensor, col_scales: Tensor, zero_points: Tensor | None, sums: Tensor | None,
    bias: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """(acc - sums ⊗ zero_points) · row_scales ⊗ col_scales + bias, rounded once to `dtype`.

    Args:
        acc: int32 (rows, cols), contiguous. row_scales: float32 (rows,). The rest: float32 (cols,), or None.
    """
    library = _library()
    assert library is not None
    rows, cols = acc.shape
    y = torch.empty((rows, cols), dtype=dtype)
    getattr(library, f"finish_{_SUFFIX[dtype]}")(
        _pointer(acc), _pointer(row_scales), _pointer(col_scales), _pointer(zero_points), _pointer(sums), _pointer(bias),
        _pointer(y), ctypes.c_int64(rows), ctypes.c_int64(cols), _threads(acc.numel()),
    )  # fmt: skip
    return y


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _threads(elements: int) -> int:
    return torch.get_num_threads() if elements >= _PARALLEL_FROM else 1
