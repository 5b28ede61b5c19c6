"""Compile kernels.c once a machine with the system's C compiler, and call it on torch tensors without copying.

Nothing is compiled where there is no compiler, or with AUTOQUANT_NATIVE=0: `available()` is then False and the runtime
uses torch operations that compute the same. The library is cached under the user's cache folder by the hash of its
source, compiler and processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math",
          "-ffinite-math-only", "-fno-signed-zeros"]  # fmt: skip
"""Divisions stay exact: a reciprocal would move codes that lie on a tie, as the largest value of each row does."""
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
_PARALLEL_FROM = 16_384
"""Elements below which waking a second thread costs more than it saves."""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "autoquant"


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("AUTOQUANT_NATIVE") == "0" or compiler is None or platform.system() != "Linux":
        return None
    key = hashlib.sha256(_SOURCE.read_bytes() + f"{compiler}{_FLAGS}{_processor()}".encode()).hexdigest()[:16]
    target = cache_folder() / f"kernels-{key}.so"
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                built = Path(scratch) / "kernels.so"
                subprocess.run(
                    [compiler, *_FLAGS, str(_SOURCE), "-o", str(built), "-lm"], check=True, capture_output=True
                )
                os.replace(built, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None  # no usable compiler or cache folder: the torch path computes the same


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.machine())


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
