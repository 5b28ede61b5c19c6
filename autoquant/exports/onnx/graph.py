"""How each scheme is written in ONNX's operations, so that ONNX Runtime runs its products in int8 where the scheme says so.

    weight only   (codes − zero point) · scale, then the product in floats
    static        QuantizeLinear → DequantizeLinear on x, DequantizeLinear on the weight: fused by ONNX Runtime
    dynamic       MatMulInteger(codes of x, codes) · s · scale,   s = max |x| / 127.5, of the row or of the whole tensor

Outlier channels are 0 in x then; rounded to multiples of s, they are multiplied in floats beside it.

Σx − Σx is taken from it (static) or added to s (dynamic), so that a row with NaN or infinity does not come out as numbers.

A weight that is used alone is not expanded by DequantizeLinear: ONNX Runtime would take that and the product together, and
quantize the input as well (1.31: MatMulNBits at accuracy level 4). Codes of activations are stored as uint8 with zero point 128,
the kind for which ONNX Runtime has kernels on x86: the same codes. Weights lie as (in, out).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoquant.exports.onnx.engine import initializer, node
from autoquant.runtimes.portable import LayerTensors
from autoquant.schemes import OUTLIER_MAX, QuantizedTensor

TINY = torch.finfo(torch.float32).tiny
INT64, FLOAT, UINT8 = 7, 1, 2
"""ONNX's numbers of the types."""


class LayerWriter:
    """Collects nodes and initializers; what several layers compute of the same input is written once (q, k and v)."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self._quantized: dict[tuple[Any, ...], tuple[str, str]] = {}
        self._tables: dict[int, str] = {}
        self._layer = ""
        self._count = self._rank = 0

    def write(self, tensors: LayerTensors, x: str, y: str, rank: int) -> None:
        """Nodes that compute the value named `y` of the one named `x`, which has `rank` axes."""
        self._layer, self._count, self._rank = tensors.layer.name, 0, rank
        kind, quantized = tensors.layer.kind, tensors.scheme.input is not None
        if kind == "embedding":
            last = self._embedding(tensors, x)
        elif kind == "conv2d" and not quantized:
            last = self._convolution(tensors, x)
        elif kind == "conv2d":
            last = self._do("Transpose", self._linear(tensors, self._patches(tensors, x)), perm=[0, 3, 1, 2])
        else:
            last = self._linear(tensors, x)
        self.nodes.append(node("Identity", [last], y))

    def _linear(self, t: LayerTensors, x: str) -> str:
        how = t.scheme.input
        if how is None:
            y = self._do("MatMul", x, self._expanded(t.weight))
        elif how.dynamic:
            y = self._dynamic(t, x)
        else:
            values, check = self._static(t, x)
            # ONNX Runtime turns the product of two matrices with a sum into a Gemm of floats; with a difference it does not.
            y = self._do("Sub", self._do("MatMul", values, self._dequantized(t.weight)), check)
        return y if t.bias is None else self._do("Add", y, self._keep("bias", t.bias.float()))

    def _expanded(self, weight: QuantizedTensor | Tensor, shape: tuple[int, ...] | None = None) -> str:
        """The weight as float32: (in, out), or of this shape (out, …), expanded from what is stored."""
        if isinstance(weight, Tensor):
            return self._keep("weight", weight.float().t() if shape is None else weight.float().reshape(shape))
        channels = (-1,) if shape is None else (-1, *[1] * (len(shape) - 1))
        codes = self._codes(weight.values) if shape is None else self._keep("weight", weight.values.reshape(shape))
        values = self._do("Cast", codes, to=FLOAT)
        if weight.zero_point is not None:
            zeros = self._keep("weight_zero_point", weight.zero_point.reshape(channels))
            values = self._do("Sub", values, self._do("Cast", zeros, to=FLOAT))
        return self._do("Mul", values, self._keep("weight_scale", weight.scale.float().reshape(channels)))

    def _codes(self, values: Tensor) -> str:
        """Codes (in, out). Those that an embedding has stored as (out, in) are not stored again."""
        table = self._tables.get(values.data_ptr())
        return self._keep("weight", values.t()) if table is None else self._do("Transpose", table, perm=[1, 0])

    def _stored(self, weight: QuantizedTensor) -> list[str]:
        """Names of codes (in, out), scale and, if there is one, zero point, each (out,) or a scalar."""
        flat = (-1,) if weight.scale.numel() > 1 else ()
        names = [
            self._keep("weight", weight.values.t()),
            self._keep("weight_scale", weight.scale.float().reshape(flat)),
        ]
        if weight.zero_point is not None:
            names.append(self._keep("weight_zero_point", weight.zero_point.reshape(flat)))
        return names

    def _dequantized(self, weight: QuantizedTensor | Tensor) -> str:
        assert isinstance(weight, QuantizedTensor)
        names = self._stored(weight)
        channels = weight.scale.numel()
        axis = {"axis": 1} if channels > 1 else {}
        if weight.zero_point is None and axis:  # left out, ONNX Runtime 1.31 sets a scalar, and refuses its own graph
            names.append(self._keep("weight_zero_point", torch.zeros(channels, dtype=torch.int8)))
        return self._do("DequantizeLinear", *names, **axis)

    def _static(self, t: LayerTensors, x: str) -> tuple[str, str]:
        """(values as quantized, what to subtract from each row's product: NaN for a row that is not finite)."""
        assert t.input_scale is not None
        scale = t.input_scale.float().reshape(())
        key = (x, float(scale))
        if key not in self._quantized:
            pair = [
                self._keep("input_scale", scale),
                self._keep("input_zero_point", torch.tensor(128, dtype=torch.uint8)),
            ]
            codes = self._do("QuantizeLinear", x, *pair)
            self._quantized[key] = self._do("DequantizeLinear", codes, *pair), self._check(x, {"keepdims": 1}, -1)
        return self._quantized[key]

    def _dynamic(self, t: LayerTensors, x: str) -> str:
        weight, how = t.weight, t.scheme.input
        assert isinstance(weight, QuantizedTensor) and how is not None
        given, wide = x, None if t.outliers is None else tuple(t.outliers.tolist())
        key = (x, how, wide)
        if key not in self._quantized:
            axes = (-1,) if how.strategy == "token" else ()
            keep = {"keepdims": len(axes)}
            least = self._floats(TINY)
            if wide is not None:
                far = self._do("ReduceMax", self._do("Abs", self._outliers(t, x)), self._ints(-1), **keep)
                least = self._do("Max", self._do("Div", far, self._floats(OUTLIER_MAX)), least)
                x = self._do("Mul", x, self._keep("inliers", t.inliers))
            top = self._do("ReduceMax", self._do("Abs", x), *map(self._ints, axes), **keep)
            scale = self._do("Max", self._do("Div", top, self._floats(127.5)), least)
            codes = self._do("Round", self._do("Div", x, scale))
            shifted = self._do(
                "Add", self._do("Clip", codes, self._floats(-128.0), self._floats(127.0)), self._floats(128.0)
            )
            checked = self._do("Add", scale, self._check(x, keep, *axes))
            self._quantized[key] = self._do("Cast", shifted, to=UINT8), checked
        codes, row_scale = self._quantized[key]
        stored = self._stored(weight)
        zeros = [self._keep("input_zero_point", torch.tensor(128, dtype=torch.uint8)), *stored[2:]]
        product = self._do("Cast", self._do("MatMulInteger", codes, stored[0], *zeros), to=FLOAT)
        if how.strategy == "token":
            # One after the other: ONNX Runtime 1.31 takes the product of both scales for its own fused product with one scale
            # for the whole input, and computes that wrongly.
            y = self._do("Mul", self._do("Mul", product, stored[1]), row_scale)
            if t.outliers is None:
                return y
            some = self._do("Mul", self._do("Round", self._do("Div", self._outliers(t, given), row_scale)), row_scale)
            return self._do("Add", y, self._do("MatMul", some, self._keep("outlier_weight", t.outlier_weight.t())))
        return self._do("Mul", product, self._do("Mul", row_scale, stored[1]))

    def _outliers(self, t: LayerTensors, x: str) -> str:
        """The outlier channels (…, some) of x."""
        assert t.outliers is not None
        return self._do("Gather", x, self._keep("outliers", t.outliers.long()), axis=-1)

    def _check(self, x: str, keep: dict[str, int], *axes: int) -> str:
        """0 where what is summed is finite, NaN elsewhere: codes would hide it, and a maximum skips NaN."""
        total = self._do("ReduceSum", x, *map(self._ints, axes), **keep)
        return self._do("Sub", total, total)

    def _embedding(self, t: LayerTensors, ids: str) -> str:
        """Rows are gathered as they are stored: the table is never expanded."""
        weight = t.weight
        if isinstance(weight, Tensor):
            return self._do("Cast", self._do("Gather", self._keep("weight", weight), ids), to=FLOAT)
        table = self._tables.setdefault(weight.values.data_ptr(), self._keep("weight", weight.values))
        rows = self._do("Cast", self._do("Gather", table, ids), to=FLOAT)
        if weight.zero_point is not None:
            zeros = self._do("Gather", self._keep("weight_zero_point", weight.zero_point.reshape(-1, 1)), ids)
            rows = self._do("Sub", rows, self._do("Cast", zeros, to=FLOAT))
        return self._do(
            "Mul", rows, self._do("Gather", self._keep("weight_scale", weight.scale.float().reshape(-1, 1)), ids)
        )

    def _convolution(self, t: LayerTensors, x: str) -> str:
        g, weight, out = t.geometry, t.weight, t.layer.shape[0]
        kernel = tuple(g["kernel_size"])
        shape = (out, t.layer.shape[1] // (kernel[0] * kernel[1]), *kernel)
        expanded = self._expanded(weight, shape)
        if isinstance(g["padding"], str):
            pads: dict[str, Any] = {"auto_pad": {"same": "SAME_UPPER", "valid": "VALID"}[g["padding"]]}
        else:
            pads = {"pads": [*g["padding"], *g["padding"]]}
        names = [x, expanded] + ([] if t.bias is None else [self._keep("bias", t.bias.float())])
        return self._do("Conv", *names, strides=list(g["stride"]), dilations=list(g["dilation"]), **pads)

    def _patches(self, t: LayerTensors, x: str) -> str:
        """(batch, channels, H, W) → (batch, h, w, channels · kh · kw); what no patch covers is left out."""
        kh, kw = t.geometry["kernel_size"]
        channels = t.layer.shape[1] // (kh * kw)
        h = self._do("Div", self._do("Shape", x, start=2, end=3), self._ints(kh))
        w = self._do("Div", self._do("Shape", x, start=3, end=4), self._ints(kw))
        ends = self._do("Concat", self._do("Mul", h, self._ints(kh)), self._do("Mul", w, self._ints(kw)), axis=0)
        x = self._do("Slice", x, self._ints(0, 0), ends, self._ints(2, 3))
        shape = self._do("Concat", self._ints(-1, channels), h, self._ints(kh), w, self._ints(kw), axis=0)
        x = self._do("Transpose", self._do("Reshape", x, shape), perm=[0, 2, 4, 1, 3, 5])
        return self._do("Reshape", x, self._ints(0, 0, 0, channels * kh * kw))

    def _do(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self._count += 1
        name = f"{self._layer}/{kind}_{self._count}"
        self.nodes.append(node(kind, inputs, name, **attributes))
        return name

    def _keep(self, last: str, tensor: Tensor) -> str:
        name = f"{self._layer}.{last}"
        self.initializers.setdefault(name, initializer(name, tensor))
        return name

    def _ints(self, *values: int) -> str:
        return self._shared("ints", torch.tensor(values, dtype=torch.int64))

    def _floats(self, value: float) -> str:
        return self._shared("float", torch.tensor(value, dtype=torch.float32))

    def _shared(self, kind: str, tensor: Tensor) -> str:
        name = f"{kind}_" + "_".join(str(value) for value in tensor.reshape(-1).tolist())
        self.initializers.setdefault(name, initializer(name, tensor))
        return name
