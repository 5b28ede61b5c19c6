from __future__ import annotations

from dataclasses import replace

import pytest

from autoquant.schemes import SCHEMES, dtype_bytes, layer_bytes
from autoquant.values import Layer

LAYER = Layer("linear", "linear", (6, 10), has_bias=True)


@pytest.mark.parametrize(
    ("scheme", "base", "expected"),
    [
        ("float32", "float32", 4 * 60 + 4 * 6),
        ("float16", "float32", 2 * 60 + 4 * 6),
        ("bfloat16", "bfloat16", 2 * 60 + 2 * 6),
        ("int8-tensor-sym", "float32", 60 + 4 + 4 * 6),
        ("int8-tensor-asym", "float32", 60 + 4 + 1 + 4 * 6),
        ("int8-channel-sym", "bfloat16", 60 + 2 * 6 + 2 * 6),
        ("int8-channel-asym", "bfloat16", 60 + 2 * 6 + 6 + 2 * 6),
        ("int8-channel-sym/a8-token", "float16", 60 + 2 * 6 + 2 * 6),
        ("int8-channel-sym/a8-static", "float16", 60 + 2 * 6 + 2 + 2 * 6),
        ("int6-channel-asym", "bfloat16", 6 * 2 * 4 + 16 + 2 * 6 + 2 * 4 + 2 * 6),
        ("int4-channel-sym/a8-token", "float32", 6 * 2 * 4 + 16 + 4 * 6 + 4 * 6),
    ],
)
def test_bytes_are_weight_scales_zero_points_bias_and_static_scale(scheme: str, base: str, expected: int) -> None:
    assert layer_bytes(LAYER, SCHEMES[scheme], base) == expected
    without = replace(LAYER, has_bias=False)
    assert layer_bytes(without, SCHEMES[scheme], base) == expected - 6 * dtype_bytes(base)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tied_layer_pays_for_all_but_the_weight(scheme: str) -> None:
    tied = replace(LAYER, tied_to="other")
    weight = 60 * (dtype_bytes(scheme) if SCHEMES[scheme].is_float else 1)
    if SCHEMES[scheme].is_packed:
        weight = 6 * 2 * 4 + 16  # 10 codes of 6 or 4 bits are two words; and the shape
    assert layer_bytes(LAYER, SCHEMES[scheme], "float16") - layer_bytes(tied, SCHEMES[scheme], "float16") == weight


def test_dtype_bytes() -> None:
    assert [dtype_bytes(name) for name in ("float32", "bfloat16", "float16")] == [4, 2, 2]
