"""One layer of each kind, built by a runtime, and what it has to compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autoquant.models.layers import inspect, weight_matrix
from autoquant.runtimes import Runtime
from autoquant.schemes import SCHEMES, QuantizedTensor, dequantize, quantize, quantize_input
from autoquant.values import Layer, Scheme

ABSMAX = 3.0


def _linear() -> nn.Module:
    return nn.Linear(21, 10)


def _no_bias() -> nn.Module:
    return nn.Linear(32, 10, bias=False)


def _wide() -> nn.Module:
    return nn.Linear(83, 70)


def _conv1d() -> nn.Module:
    return Conv1D(10, 21)


def _patchify() -> nn.Module:
    return nn.Conv2d(3, 10, (2, 3), (2, 3))


def _general() -> nn.Module:
    return nn.Conv2d(3, 10, 3, stride=2, padding=1)


def _embedding() -> nn.Module:
    return nn.Embedding(10, 21)


MODULES = {f.__name__[1:]: f for f in (_linear, _no_bias, _wide, _conv1d, _patchify, _general, _embedding)}


@dataclass
class Built:
    runtime: Runtime
    layer: Layer
    scheme: Scheme
    source: nn.Module
    weight: Tensor | QuantizedTensor
    dtype: torch.dtype

    @property
    def input_scale(self) -> Tensor | None:
        return torch.tensor([ABSMAX / 127.5], dtype=self.dtype) if self.scheme.is_static else None

    @property
    def outliers(self) -> Tensor | None:
        return torch.arange(80, 0, -5, dtype=torch.int32) if self.scheme.has_outliers else None

    def build(self) -> nn.Module:
        return self.runtime.build(
            self.layer, self.scheme, self.source, self.weight, base_dtype=self.dtype, input_scale=self.input_scale,
            outliers=self.outliers,
        )  # fmt: skip

    def inputs(self) -> Iterator[Tensor]:
        """Odd numbers of rows, two and three dimensions, no rows, views whose rows are not dense, rows of zeros."""
        make = torch.Generator().manual_seed(1)
        if self.layer.kind == "embedding":
            ids = torch.randint(0, 10, (3, 7), generator=make)
            yield from (ids, ids[0], ids[:, 2], ids.t(), ids[:0])
            return
        if self.layer.kind == "conv2d":
            pixels = torch.randn(3, 3, 8, 9, generator=make).to(self.dtype)
            yield from (pixels, pixels[:1], pixels[:, :, :, :7], pixels.to(memory_format=torch.channels_last))
            return
        width = self.layer.shape[1]
        x = torch.randn(17, 5, width, generator=make)
        x[2] = 0
        x[3, :, 0] = -9  # the extreme value is negative: its code lies on the tie at -127.5
        x[4, :, 1] = 9
        if self.outliers is not None:
            x[5:9, :, self.outliers.long()] *= torch.tensor([1.0, 20.0, 200.0, 3000.0])[:, None, None]
        x = x.to(self.dtype)
        yield from (x, x[:1, 0], x[:3, 1], x[:, 0], x[:, 2], x[0], x[:, ::2], x[:0], x[:0, 0], x[0, 0])
        yield torch.randn(width, 6, generator=make).to(self.dtype).t()
        yield x[2]

    def reference(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(expected output, size of the numbers it is a sum of) in float64."""
        w = self.weight if isinstance(self.weight, Tensor) else dequantize(self.weight, torch.float32)
        w = w.double()
        if self.layer.kind == "embedding":
            return F.embedding(x, w), F.embedding(x, w).abs()
        bias = getattr(self.source, "bias", None)
        bias = torch.zeros(len(w)) if bias is None else bias.detach().to(self.dtype)
        b = bias.double()
        if self.layer.kind == "conv2d":
            w = w.view(self.source.weight.shape)
            args = (self.source.stride, self.source.padding)
            x = self.patchwise(x) if self.scheme.input else x.double()
            return F.conv2d(x, w, b, *args), F.conv2d(x.abs(), w.abs(), b.abs(), *args)
        x = self.fake_quantized(x)
        return F.linear(x, w, b), F.linear(x.abs(), w.abs(), b.abs())

    def fake_quantized(self, x: Tensor) -> Tensor:
        if self.scheme.input is None:
            return x.double()
        codes, scales = quantize_input(x.contiguous(), self.scheme.input, self._float_scale(), self.outliers)
        return codes.double() * scales.double()

    def ties(self, x: Tensor) -> Tensor | float:
        """What one code more or less makes, of every input that lies on the border between two.

        An engine that multiplies by 1 / 127.5 where the definition divides may round those to the other side, and one that
        divides in a half precision all that lie within its rounding. `torch` may not.
        """
        if self.runtime.name == "torch" or self.scheme.input is None:
            return 0.0
        shape, w = x.shape, dequantize(self.weight, torch.float32).double().abs()
        if self.layer.kind == "conv2d":
            size, step = self.source.kernel_size, self.source.stride
            rows, columns = x.shape[2] // size[0], x.shape[3] // size[1]
            pixels = x[:, :, : rows * size[0], : columns * size[1]].float()
            x = F.unfold(pixels, size, stride=step).transpose(1, 2).to(self.dtype)
        _, scales = quantize_input(x.contiguous(), self.scheme.input, self._float_scale(), self.outliers)
        exact = x.double() / scales.double()
        rounding = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(self.dtype)
        reach = exact.abs() * rounding if rounding else 1e-4
        border = ((exact - exact.floor() - 0.5).abs() < reach) * scales.double()
        off = F.linear(border, w)
        return off if self.layer.kind != "conv2d" else off.transpose(1, 2).reshape(shape[0], -1, rows, columns)

    def _float_scale(self) -> Tensor | None:
        return None if self.input_scale is None else self.input_scale.float()

    def patchwise(self, x: Tensor) -> Tensor:
        """Pixels as quantized patch by patch, in the place they came from; what no patch covers is 0."""
        size, step = self.source.kernel_size, self.source.stride
        rows, columns = x.shape[2] // size[0] * size[0], x.shape[3] // size[1] * size[1]
        patches = F.unfold(x[:, :, :rows, :columns].float(), size, stride=step).transpose(1, 2)
        quantized = self.fake_quantized(patches.to(self.dtype)).transpose(1, 2)
        return F.fold(quantized, (rows, columns), size, stride=step)


def prepare(runtime: Runtime, kind: str, name: str, dtype: torch.dtype) -> Built:
    torch.manual_seed(0)
    module, scheme = MODULES[kind](), SCHEMES[name]
    with torch.no_grad():
        module.weight.normal_()
        module.weight.view(-1)[:3] = 0.0
        if getattr(module, "bias", None) is not None:
            module.bias.normal_()
    (layer,) = inspect(nn.Sequential(module)).layers
    matrix = weight_matrix(module).detach()
    weight: Tensor | QuantizedTensor
    if scheme.weights is None:
        weight = matrix.to(getattr(torch, str(scheme.dtype)))
    else:
        weight = quantize(matrix, scheme.weights, scale_dtype=dtype)
    return Built(runtime, layer, scheme, module, weight, dtype)


def run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return module(x)
