"""Int8 linear layers: the packed weight, and layers joined to one product."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoquant.memory import prefer_huge_pages
from autoquant.runtimes.native.avx512.library import Linear, is_bf16, kernels
from autoquant.runtimes.native.avx512.tape import Held, call, dense
from autoquant.schemes import QuantizedTensor
from autoquant.values import QuantizationArgs

PANEL = 64
"""Outputs that are packed together."""
ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "relu": 4, "swiglu": 5}
_BEHIND = 4096
_STATIC, _PER_ROW, _PER_TENSOR, _EXACT = range(4)


class PackedLinear:
    """The weight of an int8 linear layer as the kernel reads it, and what is applied to its sums.

    Attributes:
        weight: uint8, panels of 64 outputs one after the other (see kernels.c). scale, bias: float32, zero: int32, one an
            output, padded to whole panels.
        wide: int32, inputs whose codes have 16 bits; empty unless the input has outlier channels.
        width: of what it returns; with SwiGLU half of `outputs`.
        family: the joined layer whose memory this one is a part of, see `join`.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor, zero: Tensor, inputs: int, outputs: int, mode: int,
        input_scale: float, wide: Tensor, act: str | None = None,
    ) -> None:  # fmt: skip
        self.wide = wide
        self.inputs, self.outputs, self.mode, self.input_scale, self.act = inputs, outputs, mode, input_scale, act
        self.family: PackedLinear | None = None
        self.width = outputs // 2 if act == "swiglu" else outputs
        self._struct = Linear()
        self.address = ctypes.addressof(self._struct)
        self.bind(weight, scale, bias, zero)
        self._call = kernels().linear

    def bind(self, weight: Tensor, scale: Tensor, bias: Tensor, zero: Tensor) -> None:
        """Read these from now on. The struct stays where it is: tapes of other graphs hold its address."""
        self.weight, self.scale, self.bias, self.zero = weight, scale, bias, zero
        pointer = zero.data_ptr() if bool(zero.any()) else None
        pointers = (weight.data_ptr(), scale.data_ptr(), bias.data_ptr(), pointer, self.wide.data_ptr())
        values = (*pointers, self.inputs, self.outputs, self.wide.numel())
        names = [field[0] for field in Linear._fields_]
        for name, value in zip(names, (*values, ACTIVATIONS[self.act], self.mode, self.input_scale), strict=True):
            setattr(self._struct, name, value)

    @classmethod
    def pack(
        cls, weight: QuantizedTensor, bias: Tensor | None, input: QuantizationArgs | None, input_scale: Tensor | None,
        outliers: Tensor | None = None,
    ) -> PackedLinear:  # fmt: skip
        """weight: (out, in). bias: (out,), any float dtype. input: None for a weight alone. input_scale: (1,) if static.

        outliers: (some,) inputs whose codes have 16 bits, see `schemes.outlier_channels`.
        """
        outputs, inputs = weight.values.shape
        padded = -(-outputs // PANEL) * PANEL
        wide = torch.empty(0, dtype=torch.int32) if outliers is None else outliers.to(torch.int32)
        packed = _aligned(padded * (wide.numel() + -(-inputs // 4) * 4))
        values = weight.values.contiguous()
        pack = kernels().pack_linear
        pack(values.data_ptr(), packed.data_ptr(), outputs, inputs, wide.data_ptr(), wide.numel())
        scale, offset, zero = torch.zeros(padded), torch.zeros(padded), torch.zeros(padded, dtype=torch.int32)
        scale[:outputs] = weight.scale.float().reshape(-1)
        if bias is not None:
            offset[:outputs] = bias.float()
        if weight.zero_point is not None:
            zero[:outputs] += weight.zero_point.reshape(-1).to(torch.int32)
        known = 0.0 if input_scale is None else float(input_scale)
        return cls(packed, scale, offset, zero, inputs, outputs, _mode(input), known, wide)

    def unpack(self) -> Tensor:
        """The int8 weight (out, in)."""
        quads = self.weight.numel() // (-(-self.outputs // PANEL) * PANEL * 4)
        rows = self.weight.view(-1, quads, PANEL, 4).transpose(1, 2).reshape(-1, quads * 4)
        first = self.wide.numel()
        return (rows[: self.outputs, first : first + self.inputs].to(torch.int16) - 128).to(torch.int8)

    def _but(self, **changes: Any) -> PackedLinear:
        names = ("weight", "scale", "bias", "zero", "inputs", "outputs", "mode", "input_scale", "wide", "act")
        return PackedLinear(**{name: getattr(self, name) for name in names} | changes)

    def __deepcopy__(self, memo: dict[int, object]) -> PackedLinear:
        weight = _aligned(self.weight.numel()).copy_(self.weight)
        return self._but(weight=weight, scale=self.scale.clone(), bias=self.bias.clone(), zero=self.zero.clone())

    def with_activation(self, act: str) -> PackedLinear:
        return self._but(act=act)

    def scaled(self, gamma: Tensor) -> PackedLinear:
        """The layer whose outputs are multiplied by gamma (out,)."""
        factor = torch.zeros_like(self.scale)
        factor[: self.outputs] = gamma.float()
        return self._but(scale=self.scale * factor, bias=self.bias * factor)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(x Wᵀ + b) + residual.

        Args:
            x: (…, in) float32 or bfloat16 on the CPU. residual: (…, out), of the same dtype.

        Returns:
            (…, out); with SwiGLU (…, out / 2).
        """
        x, residual = dense(x), None if residual is None else dense(residual)
        y = x.new_empty(*x.shape[:-1], self.width)
        prefer_huge_pages(y.data_ptr(), y.nbytes)  # the logits of a language model
        call(
            self._call, self.address, x.data_ptr(), None if residual is None else residual.data_ptr(), y.data_ptr(),
            x.numel() // self.inputs, is_bf16(x.dtype), torch.get_num_threads(),
        )  # fmt: skip
        return y


class PackedPair:
    """second(first(x)) of two packed layers: of many rows, what is between them never leaves the cache."""

    def __init__(self, first: PackedLinear, second: PackedLinear) -> None:
        self.first, self.second = first, second
        self._call = kernels().linear_pair

    @staticmethod
    def fits(first: PackedLinear, second: PackedLinear) -> bool:
        """Not if the second's scale is one of all rows."""
        return first.width == second.inputs and second.mode != _PER_TENSOR and second.act != "swiglu"

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """second(first(x)) + residual; x: (…, in of first), residual and result: (…, out of second)."""
        x, residual = dense(x), None if residual is None else dense(residual)
        between = x.new_empty(*x.shape[:-1], self.second.inputs)
        y = x.new_empty(*x.shape[:-1], self.second.width)
        call(
            self._call, self.first.address, self.second.address, x.data_ptr(), None if residual is None else residual.data_ptr(),
            Held(between), y.data_ptr(), x.numel() // self.first.inputs, is_bf16(x.dtype), torch.get_num_threads(),
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
    alike = all((p.inputs, p.mode, p.input_scale, p.act) == same and p.outputs % PANEL == 0 for p in parts)
    return alike and all(torch.equal(p.wide, first.wide) for p in parts)


def join(parts: Sequence[PackedLinear]) -> PackedLinear:
    """One layer with the outputs of all parts, which become views of its memory."""
    first = parts[0]
    weight = _aligned(sum(p.weight.numel() for p in parts))
    torch.cat([p.weight for p in parts], out=weight)
    columns = [torch.cat([getattr(p, name) for p in parts]) for name in ("scale", "bias", "zero")]
    scale, bias, zero = columns
    outputs = sum(p.outputs for p in parts)
    joined = PackedLinear(weight, scale, bias, zero, first.inputs, outputs, first.mode, first.input_scale, first.wide)
    byte = place = 0
    for part in parts:
        own = [values[place : place + part.outputs] for values in columns]
        part.bind(weight[byte : byte + part.weight.numel()], *own)
        part.family = joined
        byte, place = byte + part.weight.numel(), place + part.outputs
    return joined


def _aligned(size: int) -> Tensor:
    """uint8 (size,) that starts at a multiple of 64 bytes, and may be read a tile beyond its end (times codes that are 0)."""
    memory = torch.empty(size + 64 + _BEHIND, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    return memory[start : start + size]
