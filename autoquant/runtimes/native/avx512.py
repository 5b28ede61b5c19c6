"""The kernels of avx512.c on torch tensors: int8 linear layers, normalisation and attention, each one call into C.

`available()` says whether this processor has them. ONEDNN_MAX_CPU_ISA, which caps what oneDNN uses, caps them as well, so
that one machine can stand in for several.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoquant.runtimes.native.build import load_library
from autoquant.schemes import QuantizedTensor
from autoquant.values import QuantizationArgs

PANEL = 64
"""Outputs that are packed together."""
ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "relu": 4, "swiglu": 5}
_STATIC, _PER_ROW, _PER_TENSOR, _EXACT = range(4)
_DTYPES = (torch.float32, torch.bfloat16)
_ISA = ("AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10", "DEFAULT", "ALL")
"""Values of ONEDNN_MAX_CPU_ISA that leave AVX-512 VNNI on, or begin so."""


class _Linear(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("shift", ctypes.c_void_p),
        ("inputs", ctypes.c_int64), ("outputs", ctypes.c_int64), ("act", ctypes.c_int32), ("mode", ctypes.c_int32),
        ("input_scale", ctypes.c_float),
    ]  # fmt: skip


_STRIDES = [f"{tensor}_{name}" for tensor in "qkv" for name in ("batch", "row", "head")]


class _Attention(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "y", "mask")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "groups", "queries", "keys", "width")),
        *((name, ctypes.c_int64) for name in (*_STRIDES, "m_batch", "m_head", "m_row", "m_key")),
        ("scale", ctypes.c_float), ("causal", ctypes.c_int32), ("bf16", ctypes.c_int32), ("mask_kind", ctypes.c_int32),
    ]  # fmt: skip


@functools.cache
def _library() -> ctypes.CDLL | None:
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    if not cap.startswith(_ISA):
        return None
    library = load_library(Path(__file__).with_name("avx512.c"))
    if library is None or not library.has_vnni():
        return None
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.pack_linear.argtypes = [pointer, pointer, count, count]
    library.linear.argtypes = [pointer, pointer, pointer, pointer, count, number, number]
    library.norm.argtypes = [pointer] * 4 + [count, count, ctypes.c_float, number, number, number]
    library.attention.argtypes = [pointer, number]
    library.embed.argtypes = [pointer] * 5 + [count, count, count, number, number]
    for name in ("pack_linear", "linear", "norm", "attention"):
        getattr(library, name).restype = None
    return library


def available() -> bool:
    return _library() is not None


def runs(x: Tensor) -> bool:
    """Whether the kernels take this tensor."""
    return x.dtype in _DTYPES and x.device.type == "cpu" and not (x.requires_grad and torch.is_grad_enabled())


# ---- recording: see graph/replay.py ----

OUT_OF_RANGE = "index out of range: a token id is not a row of the embedding table"
Tape = list[tuple[Callable[..., Any], tuple[Any, ...]]]
_tapes = threading.local()


def call(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Run a kernel; while a tape is being recorded, its pointers and sizes go onto it."""
    note(kernel, *arguments)
    return kernel(*arguments)


def note(function: Callable[..., Any], *arguments: Any) -> None:
    """What a wrapper did besides calling its kernel, and must be done again."""
    tape = getattr(_tapes, "tape", None)
    if tape is not None:
        tape.append((function, arguments))


def dense(x: Tensor) -> Tensor:
    """`x`, copied if its elements do not lie one after the other."""
    if x.is_contiguous():
        return x
    y = x.contiguous()
    note(y.copy_, x)
    return y


@contextlib.contextmanager
def recording() -> Iterator[Tape]:
    """While open, the kernels that this thread calls are put on a tape."""
    tape: Tape = []
    _tapes.tape = tape
    try:
        yield tape
    finally:
        _tapes.tape = None


class PackedLinear:
    """The weight of an int8 linear layer as the kernel reads it, and what is applied to its sums.

    Attributes:
        weight: uint8, panels of 64 outputs one after the other (see avx512.c). scale, bias: float32, shift: int32, one an
            output, padded to whole panels.
        family: the joined layer whose memory this one is a part of, see `join`.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor, shift: Tensor, inputs: int, outputs: int, mode: int,
        input_scale: float, act: str | None = None,
    ) -> None:  # fmt: skip
        self.inputs, self.outputs, self.mode, self.input_scale, self.act = inputs, outputs, mode, input_scale, act
        self.family: PackedLinear | None = None
        self._width = outputs // 2 if act == "swiglu" else outputs
        self.bind(weight, scale, bias, shift)
        library = _library()
        assert library is not None
        self._call = library.linear

    def bind(self, weight: Tensor, scale: Tensor, bias: Tensor, shift: Tensor) -> None:
        """Read these from now on."""
        self.weight, self.scale, self.bias, self.shift = weight, scale, bias, shift
        self._struct = _Linear(
            weight.data_ptr(), scale.data_ptr(), bias.data_ptr(), shift.data_ptr(), self.inputs, self.outputs,
            ACTIVATIONS[self.act], self.mode, self.input_scale,
        )  # fmt: skip
        self._address = ctypes.addressof(self._struct)

    @classmethod
    def pack(
        cls, weight: QuantizedTensor, bias: Tensor | None, input: QuantizationArgs | None, input_scale: Tensor | None
    ) -> PackedLinear:
        """weight: (out, in). bias: (out,), any float dtype. input: None for a weight alone. input_scale: (1,) if static."""
        library = _library()
        assert library is not None
        outputs, inputs = weight.values.shape
        padded = -(-outputs // PANEL) * PANEL
        packed = _aligned(padded * (-(-inputs // 4) * 4))
        values = weight.values.contiguous()
        library.pack_linear(values.data_ptr(), packed.data_ptr(), outputs, inputs)
        scale, offset, shift = torch.zeros(padded), torch.zeros(padded), torch.full((padded,), 128, dtype=torch.int32)
        scale[:outputs] = weight.scale.float().reshape(-1)
        if bias is not None:
            offset[:outputs] = bias.float()
        if weight.zero_point is not None:
            shift[:outputs] += weight.zero_point.reshape(-1).to(torch.int32)
        known = 0.0 if input_scale is None else float(input_scale)
        return cls(packed, scale, offset, shift, inputs, outputs, _mode(input), known)

    def unpack(self) -> Tensor:
        """The int8 weight (out, in)."""
        quads = self.weight.numel() // (-(-self.outputs // PANEL) * PANEL * 4)
        rows = self.weight.view(-1, quads, PANEL, 4).transpose(1, 2).reshape(-1, quads * 4)
        return (rows[: self.outputs, : self.inputs].to(torch.int16) - 128).to(torch.int8)

    def __deepcopy__(self, memo: dict[int, object]) -> PackedLinear:
        weight = _aligned(self.weight.numel()).copy_(self.weight)
        scale, bias, shift = (values.clone() for values in (self.scale, self.bias, self.shift))
        return PackedLinear(
            weight, scale, bias, shift, self.inputs, self.outputs, self.mode, self.input_scale, self.act
        )

    def with_activation(self, act: str) -> PackedLinear:
        return PackedLinear(
            self.weight, self.scale, self.bias, self.shift, self.inputs, self.outputs, self.mode, self.input_scale, act
        )

    def scaled(self, gamma: Tensor) -> PackedLinear:
        """The layer whose outputs are multiplied by gamma (out,)."""
        factor = torch.zeros_like(self.scale)
        factor[: self.outputs] = gamma.float()
        return PackedLinear(
            self.weight, self.scale * factor, self.bias * factor, self.shift, self.inputs, self.outputs, self.mode,
            self.input_scale, self.act,
        )  # fmt: skip

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(x Wᵀ + b) + residual.

        Args:
            x: (…, in) float32 or bfloat16 on the CPU. residual: (…, out), of the same dtype.

        Returns:
            (…, out); with SwiGLU (…, out / 2).
        """
        x, residual = dense(x), None if residual is None else dense(residual)
        y = x.new_empty(*x.shape[:-1], self._width)
        call(
            self._call, self._address, x.data_ptr(), None if residual is None else residual.data_ptr(), y.data_ptr(),
            x.numel() // self.inputs, x.dtype is torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip
        return y


def _mode(input: QuantizationArgs | None) -> int:
    if input is None:
        return _EXACT
    return (_PER_ROW if input.strategy == "token" else _PER_TENSOR) if input.dynamic else _STATIC


def can_join(parts: Sequence[PackedLinear]) -> bool:
    """Whether layers of the same input can be one product: they quantize it alike, and fill their panels."""
    first = parts[0]
    same = (first.inputs, first.mode, first.input_scale, None)
    return all((p.inputs, p.mode, p.input_scale, p.act) == same and p.outputs % PANEL == 0 for p in parts)


def join(parts: Sequence[PackedLinear]) -> PackedLinear:
    """One layer with the outputs of all parts, which become views of its memory."""
    first = parts[0]
    weight = _aligned(sum(p.weight.numel() for p in parts))
    torch.cat([p.weight for p in parts], out=weight)
    columns = [torch.cat([getattr(p, name) for p in parts]) for name in ("scale", "bias", "shift")]
    scale, bias, shift = columns
    outputs = sum(p.outputs for p in parts)
    joined = PackedLinear(weight, scale, bias, shift, first.inputs, outputs, first.mode, first.input_scale)
    byte = place = 0
    for part in parts:
        own = [values[place : place + part.outputs] for values in columns]
        part.bind(weight[byte : byte + part.weight.numel()], *own)
        part.family = joined
        byte, place = byte + part.weight.numel(), place + part.outputs
    return joined


def _aligned(size: int) -> Tensor:
    """uint8 (size,) that starts at a multiple of 64 bytes."""
    memory = torch.empty(size + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    return memory[start : start + size]


class Norm:
    """LayerNorm, or RMSNorm without a bias, over the last dimension; computed in float32, stored in the input's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> None:
        self.weight = weight.detach().float().contiguous()
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.eps, self.rms, self.width = eps, rms, weight.numel()
        library = _library()
        assert library is not None
        self._call = library.norm

    def __call__(self, x: Tensor) -> Tensor:
        x = dense(x)
        y = torch.empty_like(x)
        call(
            self._call, x.data_ptr(), self.weight.data_ptr(), None if self.bias is None else self.bias.data_ptr(), y.data_ptr(),
            x.numel() // self.width, self.width, self.eps, self.rms, x.dtype is torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip
        return y


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(scale · q kᵀ + mask) v, as torch's scaled_dot_product_attention, with key heads shared by query heads.

    Args:
        q: (batch, heads, queries, width), k, v: (batch, key heads, keys, width), the last dimension dense.
        mask: bool (True: attend) or float, broadcast to (batch, heads, queries, keys).

    Returns:
        (batch, heads, queries, width), laid out so that its transpose (1, 2) is dense.
    """
    batch, heads, queries, width = q.shape
    q, k, v = (t if t.stride(-1) == 1 else dense(t) for t in (q, k, v))
    y = q.new_empty(batch, queries, heads, width)
    kind, strides = 0, _NOWHERE
    if mask is not None:
        mask = _readable(mask, (batch, heads, queries, k.shape[2]))
        kind, strides = _MASKS[mask.dtype], mask.stride()
    found = _attention_call(
        q.shape, k.shape, q.stride(), k.stride(), v.stride(), strides, scale, causal, q.dtype is torch.bfloat16, kind
    )
    found.q, found.k, found.v, found.y = q.data_ptr(), k.data_ptr(), v.data_ptr(), y.data_ptr()
    found.mask = None if mask is None else mask.data_ptr()
    run(found, [q, k, v, y, mask])
    return y.transpose(1, 2)


class PackedAttention:
    """Attention of queries, keys and values that lie side by side in the columns of one product.

    Args:
        starts: the first column of each. heads: of each; query heads share key heads.
    """

    def __init__(
        self, starts: tuple[int, ...], heads: tuple[int, ...], width: int, causal: bool, scale: float | None
    ) -> None:
        self.starts, self.heads, self.width, self.causal, self.scale = starts, heads, width, causal, scale

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (batch, length, columns), mask as for `attention` → (batch, length, heads · width)."""
        batch, length, columns = x.shape
        q, k, _ = self.heads
        kind, strides = 0, _NOWHERE
        if mask is not None:
            mask = _readable(mask, (batch, q, length, length))
            kind, strides = _MASKS[mask.dtype], mask.stride()
        axes = (length * columns, self.width, columns, 1)
        bf16 = x.dtype is torch.bfloat16
        found = _attention_call(
            (batch, q, length, self.width),
            (batch, k, length),
            axes,
            axes,
            axes,
            strides,
            self.scale,
            self.causal,
            bf16,
            kind,
        )
        y = x.new_empty(batch, length, q * self.width)
        start, size = x.data_ptr(), 2 if bf16 else 4
        found.q, found.k, found.v = (start + size * column for column in self.starts)
        found.y, found.mask = y.data_ptr(), None if mask is None else mask.data_ptr()
        run(found, [x, y, mask])
        return y


def _readable(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """A mask that the kernel reads: bool, float32 or bfloat16, its last dimension dense (or, of bools, one for all)."""
    if mask.dtype not in _MASKS:
        given, mask = mask, mask.float()
        note(mask.copy_, given)
    mask = mask.expand(shape)
    return mask if mask.stride(-1) == 1 or (mask.dtype is torch.bool and mask.stride(-1) == 0) else dense(mask)


_NOWHERE: tuple[int, ...] = (0, 0, 0, 0)
_MASKS = {torch.bool: 1, torch.float32: 2, torch.bfloat16: 3}


class _AttentionCall(_Attention):
    address: int
    run: Callable[..., None]


class _Kept:
    """A call of the attention kernel whose arguments live as long as it does."""

    def __init__(self, struct: _AttentionCall, tensors: list[Tensor | None]) -> None:
        self.struct, self.tensors = _AttentionCall.from_buffer_copy(struct), tensors
        self.run, self.address = struct.run, ctypes.addressof(self.struct)
        self.threads = torch.get_num_threads()

    def __call__(self) -> None:
        self.run(self.address, self.threads)


def run(struct: _AttentionCall, tensors: list[Tensor | None]) -> None:
    """Run the kernel. The struct serves every call of its geometry, so a tape gets a copy."""
    if getattr(_tapes, "tape", None) is not None:
        note(_Kept(struct, tensors))
    struct.run(struct.address, torch.get_num_threads())


@functools.lru_cache(256)
def _attention_call(
    q: tuple, k: tuple, q_strides: tuple, k_strides: tuple, v_strides: tuple, mask_strides: tuple, scale: float | None,
    causal: bool, bf16: bool, kind: int,
) -> _AttentionCall:  # fmt: skip
    """What is the same in every call of one geometry; the pointers are filled in by each."""
    batch, heads, queries, width = q
    strides = [axes[i] for axes in (q_strides, k_strides, v_strides) for i in (0, 2, 1)]
    call = _AttentionCall(
        None, None, None, None, None, batch, heads, heads // k[1], queries, k[2], width, *strides, *mask_strides,
        width**-0.5 if scale is None else scale, causal, bf16, kind,
    )  # fmt: skip
    library = _library()
    assert library is not None
    call.address, call.run = ctypes.addressof(call), library.attention
    return call


def embed(ids: Tensor, table: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Rows `ids` (…) int64 of an int8 table (rows, width), expanded to (…, width) `dtype`.

    Args:
        scale, zero_point: float32 (rows, 1).

    Raises:
        IndexError: an index is not a row of the table.
    """
    library = _library()
    assert library is not None
    ids = dense(ids)
    y = torch.empty((*ids.shape, table.shape[1]), dtype=dtype)
    bad = call(
        library.embed, ids.data_ptr(), table.data_ptr(), scale.data_ptr(),
        None if zero_point is None else zero_point.data_ptr(), y.data_ptr(), ids.numel(), table.shape[1], table.shape[0],
        dtype is torch.bfloat16, torch.get_num_threads(),
    )  # fmt: skip
    if bad:
        raise IndexError(OUT_OF_RANGE)
    return y
