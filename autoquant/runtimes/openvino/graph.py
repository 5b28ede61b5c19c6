"""How each scheme is written in OpenVINO's operations. All of them run their products in int8 where the scheme says so.

OpenVINO turns a MatMul into an integer product when its input comes from a FakeQuantize with constant ranges and its weight
from an int8 constant without zero point. Everything else is written around that product:

    static        FakeQuantize(x; scale · [-128, 127])                                 · Wᵀ
    dynamic       FakeQuantize(x / s; [-128, 127]) · Wᵀ · s,    s = max |x| / 127.5, of the row or of the whole tensor

Outlier channels are 0 in x then; rounded to multiples of s, they are multiplied in floats beside it.

Σx − Σx is added to it (static) or to s (dynamic), so that a row with NaN or infinity does not come out as numbers.

An asymmetric weight would need Σ codes ⊗ zero point subtracted from the product. In bfloat16 graphs OpenVINO rounds the product
first, and the difference of the two is lost in that (two to three times the quantization error was measured): not offered.

A weight that is expanded as it is used carries its zero point in the usual way, (codes − zero point) · scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoquant.runtimes.openvino.engine import PRECISION, constant, openvino, opset
from autoquant.runtimes.portable import LayerTensors
from autoquant.schemes import OUTLIER_MAX


class LayerWriter:
    """Writes layers into one graph; what several of them compute of the same input is written once (q, k and v).

    Everything it writes is float32, in whatever precision the graph is executed later.
    """

    def __init__(self) -> None:
        self._op = opset()
        self._quantized: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        self._codes: dict[int, tuple[Tensor, Any]] = {}

    def write(self, tensors: LayerTensors, x: Any) -> Any:
        """The output node of the layer for the input node `x` (float32, or int64 ids for an embedding)."""
        layer = tensors.layer
        if layer.kind == "embedding":
            return self._named(self._embedding(tensors, x), tensors)
        if layer.kind == "conv2d" and tensors.scheme.input is None:
            return self._named(self._convolution(tensors, x), tensors)
        if layer.kind == "conv2d":
            y = self._linear(tensors, self._patches(tensors, x))
            return self._named(self._op.transpose(y, self._ints(0, 3, 1, 2)), tensors)
        return self._named(self._linear(tensors, x), tensors)

    def _linear(self, t: LayerTensors, x: Any) -> Any:
        op = self._op
        if t.scheme.input is None:
            y = op.matmul(x, self._expanded(t), False, True)
        elif t.scheme.input.dynamic:
            codes, scale = self._quantize(t, x)
            y = op.multiply(op.matmul(codes, self._expanded(t), False, True), scale)
            if t.outliers is not None:
                wide = op.round(op.divide(self._outliers(t, x), scale), "HALF_TO_EVEN")
                y = op.add(y, op.matmul(op.multiply(wide, scale), constant(t.outlier_weight), False, True))
        else:
            values, check = self._quantize(t, x)
            y = op.add(op.matmul(values, self._expanded(t), False, True), check)
        return y if t.bias is None else op.add(y, constant(t.bias.float()))

    def _quantize(self, t: LayerTensors, x: Any) -> tuple[Any, Any]:
        """(codes, the scale of each row's product), or, of a static scheme, (values, what to add to each row's product).

        Either is NaN for a row that is not finite: a FakeQuantize hides that.
        """
        op, how = self._op, t.scheme.input
        assert how is not None
        source = x.get_node() if hasattr(x, "get_node") else x
        static = None if t.input_scale is None or how.dynamic else float(t.input_scale.float())
        wide = None if t.outliers is None else tuple(t.outliers.tolist())
        key = (source.get_name(), x.get_index() if hasattr(x, "get_index") else 0, how, static, wide)
        if key not in self._quantized:
            if static is not None:
                self._quantized[key] = self._fake_quantize(x, static), self._check(x)
            else:
                least = None
                if t.outliers is not None:
                    top = op.reduce_max(op.abs(self._outliers(t, x)), self._ints(-1), keep_dims=True)
                    least = op.divide(top, self._float(OUTLIER_MAX))
                    x = op.multiply(x, constant(t.inliers))
                rows, axis = (x, -1) if how.strategy == "token" else (op.reshape(x, self._ints(-1), False), 0)
                top = op.reduce_max(op.abs(rows), self._ints(axis), keep_dims=True)
                scale = op.divide(top, self._float(127.5))
                scale = scale if least is None else op.maximum(scale, least)
                # 1 of a row of zeros; in float16 there is no number small enough to be a least scale instead
                scale = op.select(op.equal(scale, self._float(0.0)), self._float(1.0), scale)
                codes = self._fake_quantize(op.divide(x, scale), 1.0)
                self._quantized[key] = codes, op.add(scale, self._check(rows))
        return self._quantized[key]

    def _outliers(self, t: LayerTensors, x: Any) -> Any:
        """The outlier channels (…, some) of x."""
        assert t.outliers is not None
        return self._op.gather(x, self._ints(*t.outliers.tolist()), self._ints(-1))

    def _check(self, rows: Any) -> Any:
        """0 for a row that is finite, NaN for any other. (A maximum would not tell: it skips NaN.)"""
        total = self._op.reduce_sum(rows, self._ints(-1), keep_dims=True)
        return self._op.subtract(total, total)

    def _fake_quantize(self, x: Any, scale: float) -> Any:
        low, high = self._float(-128 * np.float32(scale)), self._float(127 * np.float32(scale))
        return self._op.fake_quantize(x, low, high, low, high, 256)

    def _expanded(self, t: LayerTensors) -> Any:
        """The weight as float32 (out, in), expanded from what is stored."""
        op, weight = self._op, t.weight
        if isinstance(weight, Tensor):
            return self._float_constant(weight)
        values = self._int8(weight.values)
        if weight.zero_point is not None:
            values = op.subtract(values, op.convert(constant(weight.zero_point.reshape(-1, 1)), "f32"))
        return op.multiply(values, constant(weight.scale.float().reshape(-1, 1)))

    def _int8(self, values: Tensor) -> Any:
        """Codes as float32 from an int8 constant; layers that share a weight share the constant."""
        if values.data_ptr() not in self._codes:
            self._codes[values.data_ptr()] = values, constant(values)
        return self._op.convert(self._codes[values.data_ptr()][1], "f32")

    def _float_constant(self, value: Tensor) -> Any:
        made = constant(value)
        return made if value.dtype == torch.float32 else self._op.convert(made, "f32")

    def _embedding(self, t: LayerTensors, ids: Any) -> Any:
        """Rows are gathered as they are stored: the table is never expanded."""
        op, weight = self._op, t.weight
        axis = self._ints(0)
        if isinstance(weight, Tensor):
            return op.convert(op.gather(constant(weight), ids, axis), "f32")
        if weight.values.data_ptr() not in self._codes:
            self._codes[weight.values.data_ptr()] = weight.values, constant(weight.values)
        rows = op.convert(op.gather(self._codes[weight.values.data_ptr()][1], ids, axis), "f32")
        if weight.zero_point is not None:
            zeros = op.gather(constant(weight.zero_point.reshape(-1, 1)), ids, axis)
            rows = op.subtract(rows, op.convert(zeros, "f32"))
        return op.multiply(rows, op.gather(constant(weight.scale.float().reshape(-1, 1)), ids, axis))

    def _convolution(self, t: LayerTensors, x: Any) -> Any:
        op, g = self._op, t.geometry
        kernel = g["kernel_size"]
        shape = (t.layer.shape[0], -1, *kernel)
        weight = op.reshape(self._expanded(t), self._ints(*shape), False)
        padding = g["padding"]
        how = (
            {"valid": "valid", "same": "same_upper"}.get(padding, "explicit")
            if isinstance(padding, str)
            else "explicit"
        )
        pads = [0, 0] if isinstance(padding, str) else list(padding)
        y = op.convolution(x, weight, list(g["stride"]), pads, pads, list(g["dilation"]), auto_pad=how)
        return y if t.bias is None else op.add(y, constant(t.bias.float().reshape(1, -1, 1, 1)))

    def _patches(self, t: LayerTensors, x: Any) -> Any:
        """(batch, channels, H, W) → (batch, h, w, channels · kh · kw); what no patch covers is left out."""
        op = self._op
        kh, kw = t.geometry["kernel_size"]
        channels = t.layer.shape[1] // (kh * kw)
        size = op.shape_of(x, "i64")
        h = op.divide(op.gather(size, self._ints(2), self._ints(0)), self._ints(kh))
        w = op.divide(op.gather(size, self._ints(3), self._ints(0)), self._ints(kw))
        ends = op.concat([op.multiply(h, self._ints(kh)), op.multiply(w, self._ints(kw))], 0)
        x = op.slice(x, self._ints(0, 0), ends, self._ints(1, 1), self._ints(2, 3))
        shape = op.concat([self._ints(-1), self._ints(channels), h, self._ints(kh), w, self._ints(kw)], 0)
        x = op.transpose(op.reshape(x, shape, False), self._ints(0, 2, 4, 1, 3, 5))
        return op.reshape(x, self._ints(0, 0, 0, channels * kh * kw), True)

    def _named(self, node: Any, t: LayerTensors) -> Any:
        node.set_friendly_name(t.layer.name)
        return node

    def _ints(self, *values: int) -> Any:
        return self._op.constant(np.array(values, dtype=np.int64))

    def _float(self, value: float | np.floating) -> Any:
        return self._op.constant(np.float32(value))


def layer_graph(tensors: LayerTensors) -> Any:
    """A graph of one layer: ids of any shape, pixels (batch, channels, H, W), or (rows, in) → output in the base dtype."""
    ov, op = openvino(), opset()
    layer = tensors.layer
    base = PRECISION[str(tensors.base_dtype).removeprefix("torch.")]
    if layer.kind == "embedding":
        x = op.parameter(ov.PartialShape([-1]), ov.Type.i64, name="ids")
        inner = x
    else:
        channels = layer.shape[1] // int(np.prod(tensors.geometry.get("kernel_size", (1,))))
        shape = [-1, channels, -1, -1] if layer.kind == "conv2d" else [-1, layer.shape[1]]
        x = op.parameter(ov.PartialShape(shape), getattr(ov.Type, base), name="x")
        inner = x if base == "f32" else op.convert(x, "f32")
    y = LayerWriter().write(tensors, inner)
    return ov.Model([op.result(y if base == "f32" else op.convert(y, base))], [x], layer.name)
