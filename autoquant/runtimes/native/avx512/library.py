"""The compiled kernels.c, the structs that its functions take, and who may call them."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from autoquant.runtimes.native.build import allows, load_library

_BF16 = {torch.float32: False, torch.bfloat16: True}


class Linear(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("zero", ctypes.c_void_p),
        ("wide", ctypes.c_void_p), ("inputs", ctypes.c_int64), ("outputs", ctypes.c_int64), ("wides", ctypes.c_int64),
        ("act", ctypes.c_int32), ("mode", ctypes.c_int32),
        ("input_scale", ctypes.c_float),
    ]  # fmt: skip


_STRIDES = [f"{tensor}_{name}" for tensor in "qkv" for name in ("batch", "row", "head")]


class Attention(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "y", "mask")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "groups", "queries", "keys", "width")),
        *((name, ctypes.c_int64) for name in (*_STRIDES, "m_batch", "m_head", "m_row", "m_key")),
        ("scale", ctypes.c_float), ("causal", ctypes.c_int32), ("bf16", ctypes.c_int32), ("mask_kind", ctypes.c_int32),
    ]  # fmt: skip


class Rotary(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "cos", "sin", "y")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "rows", "width")),
        *((name, ctypes.c_int64) for name in ("x_batch", "x_head", "x_row", "y_batch", "y_head", "c_batch")),
        ("bf16", ctypes.c_int32),
    ]  # fmt: skip


class Cached(ctypes.Structure):
    _fields_ = [("q", Rotary), ("k", Rotary), ("v", Rotary), ("attend", Attention)]


@functools.cache
def library() -> ctypes.CDLL | None:
    if not allows("avx512vnni"):
        return None
    found = load_library(Path(__file__).with_name("kernels.c"))
    if found is None or not found.has_vnni():
        return None
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found.pack_linear.argtypes = [pointer, pointer, count, count, pointer, count]
    found.linear.argtypes = [pointer, pointer, pointer, pointer, count, number, number]
    found.linear_pair.argtypes = [pointer] * 6 + [count, number, number]
    found.norm.argtypes = [pointer] * 4 + [count, count, ctypes.c_float, number, number, number]
    found.attention.argtypes = [pointer, number]
    found.embed.argtypes = [pointer] * 5 + [count, count, count, number, number]
    found.rotary.argtypes = [pointer, number]
    found.cached_attention.argtypes = [pointer, number]
    found.use_amx(True)
    for name in ("pack_linear", "linear", "linear_pair", "norm", "attention", "rotary", "cached_attention"):
        getattr(found, name).restype = None
    return found


def available() -> bool:
    return library() is not None


def use_amx(wanted: bool = True) -> bool:
    """Let the kernels multiply with AMX, which they do from the beginning where they can, or not; returns whether they do."""
    return available() and bool(kernels().use_amx(wanted))


def uses_amx() -> bool:
    """Whether the kernels multiply with AMX."""
    return available() and bool(kernels().uses_amx())


def takes(dtype: torch.dtype) -> bool:
    """Whether the kernels read and write elements of it: of float32 and bfloat16; a float16 is none of theirs."""
    return dtype in _BF16


def runs(x: Tensor) -> bool:
    """Whether the kernels take this tensor."""
    return takes(x.dtype) and x.device.type == "cpu" and not (x.requires_grad and torch.is_grad_enabled())


def is_bf16(dtype: torch.dtype) -> bool:
    """How the kernels are to read and write elements: as bfloat16, or as float32.

    Raises:
        TypeError: they are neither. Two-byte elements written as float32 would end behind their memory.
    """
    try:
        return _BF16[dtype]
    except KeyError:
        raise TypeError(f"the kernels take float32 and bfloat16, not {dtype}") from None


def kernels() -> ctypes.CDLL:
    """The library, where `available` has said that there is one."""
    found = library()
    assert found is not None
    return found
