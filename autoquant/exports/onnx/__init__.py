"""The `onnx` export: quantize and dequantize operations around every product, for ONNX Runtime. Needs the extra [onnx]."""

from autoquant.exports.onnx.export import ONNXExport

__all__ = ["ONNXExport"]
