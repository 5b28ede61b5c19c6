"""Numerics: quantize, dequantize and count the bytes of a tensor; the table of schemes. Nothing here knows a model."""

from autoquant.schemes.integer import (
    OUTLIER_COUNTS,
    OUTLIER_MAX,
    QuantizedTensor,
    dequantize,
    outlier_channels,
    quantize,
    quantize_input,
    split_outliers,
    static_scale,
)
from autoquant.schemes.size import dtype_bytes, layer_bytes, packed_words
from autoquant.schemes.table import SCHEMES, computed_as, get_scheme, project

__all__ = [
    "OUTLIER_COUNTS",
    "OUTLIER_MAX",
    "SCHEMES",
    "QuantizedTensor",
    "computed_as",
    "dequantize",
    "dtype_bytes",
    "get_scheme",
    "layer_bytes",
    "outlier_channels",
    "packed_words",
    "project",
    "quantize",
    "quantize_input",
    "split_outliers",
    "static_scale",
]
