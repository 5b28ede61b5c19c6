"""Numerics: quantize, dequantize and count the bytes of a tensor; the table of schemes. Nothing here knows a model."""

from autoquant.schemes.integer import QuantizedTensor, dequantize, quantize, quantize_input, static_scale
from autoquant.schemes.size import dtype_bytes, layer_bytes
from autoquant.schemes.table import SCHEMES, get_scheme, project

__all__ = [
    "SCHEMES",
    "QuantizedTensor",
    "dequantize",
    "dtype_bytes",
    "get_scheme",
    "layer_bytes",
    "project",
    "quantize",
    "quantize_input",
    "static_scale",
]
