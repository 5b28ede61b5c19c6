"""The `torch` runtime: int8 products with `torch._int_mm` on CPU and CUDA, float layers as torch runs them.

One recipe serves every int8 scheme: codes of the input × codes of the weight in int32, then one pass that applies the
scales, corrects for an asymmetric weight's zero point (sum of the row's codes × zero point) and adds the bias. On CPU the
two passes around the product are compiled C where a compiler is at hand (`native`), torch operations otherwise.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoquant.runtimes import native
from autoquant.runtimes.base import Runtime
from autoquant.runtimes.native import avx512
from autoquant.schemes import QuantizedTensor, dequantize, quantize_input, split_outliers
from autoquant.values import Layer, QuantizationArgs, Scheme

_FEW_ROWS = 16
"""Up to here `_weight_int8pack_mm` beats expanding the weight and multiplying in floats."""
_PACK_WIDTH = 16
"""Inputs that `_weight_int8pack_mm` takes in one step; it reads past the end of a row of any other length, and crashes."""


class TorchRuntime(Runtime):
    name = "torch"
    devices = ("cpu", "cuda")

    def build(
        self,
        layer: Layer,
        scheme: Scheme,
        module: nn.Module,
        weight: QuantizedTensor | Tensor,
        *,
        base_dtype: torch.dtype,
        input_scale: Tensor | None = None,
        outliers: Tensor | None = None,
    ) -> nn.Module:
        self.require(layer, scheme, input_scale, outliers)
        bias = getattr(module, "bias", None)
        bias = None if bias is None else bias.detach().to(base_dtype)
        if isinstance(weight, Tensor):
            built: nn.Module = FloatLayer(layer, module, weight.detach(), bias, base_dtype)
        elif layer.kind == "embedding":
            built = Int8Embedding(weight, base_dtype)
        elif layer.kind == "conv2d":
            built = Int8Conv2d(weight, bias, scheme.input, base_dtype, input_scale, module)
        else:
            built = Int8Linear(weight, bias, scheme.input, base_dtype, input_scale, outliers)
        built.scheme_name = scheme.name  # type: ignore[assignment]
        return built.eval()

    def fuses(self, device: str) -> bool:
        return device == "cpu" and avx512.available()

    def has_kernels(self, dtype: str, device: str) -> bool:
        return device != "cpu" or not avx512.available() or avx512.takes(getattr(torch, dtype))

    def serve(self, model: nn.Module) -> nn.Module:
        from autoquant.runtimes import graph  # which captures the modules below

        return graph.accelerate(model)

    def refresh(self, model: nn.Module) -> None:
        from autoquant.runtimes import graph

        graph.refresh(model)

    def description(self) -> str:
        if torch.cuda.is_available():
            return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        kernels = (
            f"{'AMX' if avx512.uses_amx() else 'AVX-512 VNNI'} kernels"
            if avx512.available()
            else "C passes"
            if native.available()
            else "torch passes"
        )
        isa = torch.backends.cpu.get_cpu_capability()
        return f"{_cpu_name()} ({isa}), torch {torch.__version__}, {kernels}"


class Int8Linear(nn.Module):
    """y = x Wᵀ + b with an int8 weight: an integer product if the input is quantized, otherwise an expanded weight.

    Args:
        pack: hold the weight as the AVX-512 kernel reads it, where there is that kernel, from the beginning.

    Buffers:
        weight: int8 (in, out) for an integer product (the layout `_int_mm` reads fastest), (out, in) for weight only; empty
            while it is packed.
        weight_scale: float32 (out,); zero_point: float32 (out,) or None; bias: base dtype (out,) or None.
        input_scale: float32 (1,) for a static scheme. outliers: int32 (some,) for a scheme with outlier channels.
    """

    weight: Tensor
    weight_scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None
    bias32: Tensor | None
    input_scale: Tensor | None
    outliers: Tensor | None

    def __init__(
        self, weight: QuantizedTensor, bias: Tensor | None, input: QuantizationArgs | None, dtype: torch.dtype,
        input_scale: Tensor | None, outliers: Tensor | None = None, pack: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        out, self.in_features = weight.values.shape
        self.out_features = out
        self.input = input
        self.dtype = dtype
        scale = weight.scale.float().reshape(-1).expand(out).contiguous()
        zero = None if weight.zero_point is None else weight.zero_point.float().reshape(-1).expand(out).contiguous()
        self.register_buffer("weight", weight.values)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("zero_point", zero)
        self.register_buffer("bias", bias)
        self.register_buffer("bias32", None if bias is None else bias.float(), persistent=False)
        self.register_buffer("input_scale", None if input_scale is None else input_scale.float().reshape(1))
        self.register_buffer("outliers", outliers if input is not None and input.outliers else None)
        self._packed: avx512.PackedLinear | None = None
        if pack and avx512.takes(dtype) and self._can_pack():
            self._pack(weight.values)
        else:
            self.weight = _aligned((weight.values if input is None else weight.values.t()).contiguous())

    @property
    def packed(self) -> avx512.PackedLinear | None:
        """The layer as the AVX-512 kernel reads it, which then has the only copy of the weight; None elsewhere."""
        if self._packed is None and self._can_pack():
            self._pack(self.weight if self.input is None else self.weight.t())
        return self._packed

    def _can_pack(self) -> bool:
        return self.weight.device.type == "cpu" and avx512.available()

    def _pack(self, values: Tensor) -> None:
        """values: (out, in)."""
        zero = None if self.zero_point is None else self.zero_point[:, None]
        weight = QuantizedTensor(values, self.weight_scale[:, None], zero)
        self._packed = avx512.PackedLinear.pack(weight, self.bias32, self.input, self.input_scale, self.outliers)
        self.weight = torch.empty(0, dtype=torch.int8)

    def _unpack(self) -> None:
        """Back to the plain weight, which is what moves to another device and what other kernels read."""
        if self._packed is not None:
            values, self._packed = self._packed.unpack(), None
            self.weight = values if self.input is None else values.t().contiguous()

    def _apply(self, fn, recurse: bool = True):  # .to(), .cuda(), …
        moved = fn(torch.empty(0))
        if moved.device.type != "cpu" or moved.dtype is not torch.float32:
            self._unpack()
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        if avx512.runs(x) and (packed := self.packed) is not None:
            return packed(x)
        self._unpack()
        flat = x.reshape(-1, self.in_features)
        y = self._weight_only(flat) if self.input is None else self._integer(flat)
        return y.view(*x.shape[:-1], self.out_features)

    def _integer(self, x: Tensor) -> Tensor:
        assert self.input is not None
        if x.device.type == "cpu" and native.available(x.dtype) and not x.requires_grad and self.outliers is None:
            codes, scales, sums = native.quantize_rows(
                x.contiguous(),
                scale=self.input_scale,
                per_row=self.input.strategy == "token",
                with_sums=self.zero_point is not None,
            )
            acc = _int_mm(codes, self.weight)
            return native.finish(acc, scales, self.weight_scale, self.zero_point, sums, self.bias32, x.dtype)
        codes, scale = quantize_input(x, self.input, self.input_scale, self.outliers)
        if self.outliers is None:
            acc = _int_mm(codes, self.weight).float()
        else:
            low, high = split_outliers(codes, self.outliers)
            wide = self.weight.index_select(0, self.outliers.long())
            acc = (_int_mm(low, self.weight) + _int_mm(high, wide) * 256).float()
        if self.zero_point is not None:
            acc = acc - codes.sum(-1, keepdim=True, dtype=torch.int32).float() * self.zero_point
        y = acc * (scale * self.weight_scale)
        return (y if self.bias32 is None else y + self.bias32).to(x.dtype)

    def _weight_only(self, x: Tensor) -> Tensor:
        if self._fits_pack(x):
            x = x.contiguous()  # the kernel reads strided rows as if they were dense
            y = torch._weight_int8pack_mm(x, self.weight, self.weight_scale.to(x.dtype))
            return y if self.bias is None else y + self.bias
        zero = None if self.zero_point is None else self.zero_point[:, None]
        weight = dequantize(QuantizedTensor(self.weight, self.weight_scale[:, None], zero), x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def _fits_pack(self, x: Tensor) -> bool:
        few, whole = x.shape[0] <= _FEW_ROWS, self.in_features % _PACK_WIDTH == 0
        aligned = self.weight.data_ptr() % _PACK_WIDTH == 0  # the kernel crashes on others
        return (
            self.zero_point is None
            and few
            and whole
            and aligned
            and x.device.type == "cpu"
            and x.dtype != torch.float32
        )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {getattr(self, 'scheme_name', 'int8')}"


class Int8Conv2d(nn.Module):
    """A Conv2d with an int8 weight: a patch embedding is an `Int8Linear` over patches, others expand their weight."""

    def __init__(
        self, weight: QuantizedTensor, bias: Tensor | None, input: QuantizationArgs | None, dtype: torch.dtype,
        input_scale: Tensor | None, module: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__()
        self.geometry: dict[str, Any] = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
        self.kernel_size: tuple[int, int] = module.kernel_size  # type: ignore[assignment]
        self.linear = Int8Linear(weight, bias, input, dtype, input_scale, pack=input is not None)

    def forward(self, x: Tensor) -> Tensor:
        kh, kw = self.kernel_size
        if self.linear.input is None:
            values, zero = self.linear.weight, self.linear.zero_point
            q = QuantizedTensor(values, self.linear.weight_scale[:, None], None if zero is None else zero[:, None])
            weight = dequantize(q, x.dtype).view(-1, x.shape[1], kh, kw)
            bias = None if self.linear.bias is None else self.linear.bias.to(x.dtype)
            return F.conv2d(x, weight, bias, **self.geometry)
        b, c, height, width = x.shape
        h, w = height // kh, width // kw
        patches = x[:, :, : h * kh, : w * kw].reshape(b, c, h, kh, w, kw).permute(0, 2, 4, 1, 3, 5)
        return self.linear(patches.reshape(b, h, w, c * kh * kw)).permute(0, 3, 1, 2)

    @property
    def weight(self) -> Tensor:
        """Models read the weight's dtype to cast their pixels; the activations are in the base dtype."""
        return torch.empty(0, dtype=self.linear.dtype)


class Int8Embedding(nn.Module):
    """Rows of an int8 table, expanded as they are gathered.

    Buffers: weight int8 (rows, width); weight_scale (rows, 1) float32; zero_point (rows, 1) float32 or None.
    """

    weight: Tensor
    weight_scale: Tensor
    zero_point: Tensor | None

    def __init__(self, weight: QuantizedTensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.values.shape
        self.dtype = dtype
        self.register_buffer("weight", weight.values)
        self.register_buffer("weight_scale", weight.scale.float())
        self.register_buffer("zero_point", None if weight.zero_point is None else weight.zero_point.float())

    def forward(self, ids: Tensor) -> Tensor:
        if ids.device.type == "cpu" and ids.dtype is torch.int64 and avx512.takes(self.dtype) and avx512.available():
            return avx512.embed(ids, self.weight, self.weight_scale, self.zero_point, self.dtype)
        zero = None if self.zero_point is None else F.embedding(ids, self.zero_point)
        q = QuantizedTensor(F.embedding(ids, self.weight), F.embedding(ids, self.weight_scale), zero)
        return dequantize(q, self.dtype)


class FloatLayer(nn.Module):
    """A layer in a float dtype that may differ from the base dtype: the input is cast to it and the output back."""

    bias: Tensor | None

    def __init__(
        self, layer: Layer, module: nn.Module, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.kind = layer.kind
        self.dtype = dtype
        own = weight if layer.kind != "conv2d" else weight.reshape(module.weight.shape)  # type: ignore[arg-type]
        self.weight = nn.Parameter(own, requires_grad=False)
        self.register_buffer("bias", None if bias is None else bias.to(weight.dtype))
        names = ("stride", "padding", "dilation")
        self.geometry: dict[str, Any] = {name: getattr(module, name) for name in names if hasattr(module, name)}

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "embedding":
            return F.embedding(x, self.weight).to(self.dtype)
        x = x.to(self.weight.dtype)
        if self.kind == "conv2d":
            return F.conv2d(x, self.weight, self.bias, **self.geometry).to(self.dtype)
        return F.linear(x, self.weight, self.bias).to(self.dtype)


def _aligned(values: Tensor) -> Tensor:
    """`values`, copied if they start anywhere: tensors read from a file do."""
    return values if values.data_ptr() % 64 == 0 else values.clone()


def _int_mm(codes: Tensor, weight: Tensor) -> Tensor:
    """int32 (rows, out) = codes (rows, in) @ weight (in, out); CUDA wants more than 16 rows."""
    if codes.device.type == "cpu" and not _adds_exactly():
        # Exact up to 1,032 inputs, and rounded like any float product beyond; as fast as two int8 products of 7 bits.
        return torch.mm(codes.float(), weight.float()).to(torch.int32)
    if codes.device.type != "cuda" or codes.shape[0] > 16:
        return torch._int_mm(codes, weight)
    padded = F.pad(codes, (0, 0, 0, 32 - codes.shape[0]))
    return torch._int_mm(padded, weight)[: codes.shape[0]]


@functools.cache
def _adds_exactly() -> bool:
    """Whether `torch._int_mm` is right on this CPU: without VNNI, oneDNN adds pairs of products in 16 bits, which saturate."""
    codes = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(codes, codes.t().repeat(1, 2)) == 64 * 127**2).all())


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
