"""The kernels compute the same with tiles as without them. (Whether that is right, the contracts say.)"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from autoquant.runtimes import TorchRuntime
from autoquant.runtimes.native import avx512
from autoquant.schemes import SCHEMES, quantize

pytestmark = pytest.mark.skipif(not avx512.use_amx(), reason="no AMX, or ONEDNN_MAX_CPU_ISA hides it")
ROWS = (3, 11, 15, 16, 17, 33, 130)
SHAPES = ((64, 64), (100, 70), (384, 200), (1100, 1000))
"""Inputs and outputs: whole tiles, parts of them, and a weight that gets more rows at once."""


@pytest.fixture(autouse=True)
def tiles_afterwards() -> Iterator[None]:
    yield
    avx512.use_amx()


def packed(name: str, inputs: int, outputs: int, act: str | None = None) -> avx512.PackedLinear:
    make, scheme = torch.Generator().manual_seed(inputs), SCHEMES[name]
    assert scheme.weights is not None
    weight = quantize(torch.randn(outputs, inputs, generator=make), scheme.weights)
    outliers = torch.arange(3, inputs, inputs // 16, dtype=torch.int32)[:16] if scheme.has_outliers else None
    scale = torch.tensor([0.02]) if scheme.is_static else None
    layer = avx512.PackedLinear.pack(weight, torch.randn(outputs, generator=make), scheme.input, scale, outliers)
    return layer if act is None else layer.with_activation(act)


def both(run: object, *arguments: object) -> tuple[Tensor, Tensor]:
    found = []
    for wanted in (True, False):
        assert avx512.use_amx(wanted) is wanted
        found.append(run(*arguments))  # type: ignore[operator]
    return found[0], found[1]


def test_the_kernels_that_run_are_named_and_stay_as_they_are() -> None:
    assert avx512.uses_amx() and "AMX kernels" in TorchRuntime().description()
    avx512.use_amx(False)
    assert "AVX-512 VNNI kernels" in TorchRuntime().description() and not avx512.uses_amx()


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.input and not scheme.is_packed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_int8_products_are_equal(name: str, dtype: torch.dtype, inputs: int, outputs: int) -> None:
    layer = packed(name, inputs, outputs)
    for rows in ROWS:
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
        assert torch.equal(*both(layer, x)), rows
        residual = torch.randn(rows, outputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
        assert torch.equal(*both(layer, x, residual)), rows


@pytest.mark.parametrize("inputs", [64, 100, 384])
@pytest.mark.parametrize("name", ["int8-channel-sym", "int8-channel-asym"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0.0), (torch.bfloat16, 2**-7)])
def test_products_of_weights_alone(name: str, inputs: int, dtype: torch.dtype, tolerance: float) -> None:
    """A float32 input is three int8 products, a bfloat16 one is multiplied as it is: sums in another order."""
    layer = packed(name, inputs, 70)
    for rows in ROWS:
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
        tiles, vectors = both(layer, x)
        assert torch.allclose(tiles.float(), vectors.float(), rtol=tolerance, atol=tolerance), rows


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "silu", "relu", "swiglu"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_activations(act: str, dtype: torch.dtype, tolerance: float) -> None:
    """Of bfloat16 tiles are activated as exactly as a bfloat16 can tell, far out and at zero as well."""
    layer = packed("int8-channel-sym/a8-token", 64, 128, act)
    x = torch.randn(33, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 33)[:, None]
    tiles, vectors = both(layer, x.to(dtype))
    assert bool(torch.isfinite(tiles).all())
    assert torch.allclose(
        tiles.float(), vectors.float(), rtol=tolerance, atol=1e-4 if dtype is torch.bfloat16 else 1e-6
    )


QUERIES = (
    (1, 7, False),
    (1, 16, False),
    (1, 129, False),
    (2, 5, False),
    (16, 16, True),
    (33, 33, True),
    (70, 129, False),
)
"""Of one query, as in decoding, five heads read the same keys at once; the last keys are read early rather than past the end."""


@pytest.mark.parametrize("width", [8, 20, 32, 64, 80, 96])
@pytest.mark.parametrize("queries, keys, causal", QUERIES)
@pytest.mark.parametrize("masked", [False, True])
def test_attention(width: int, queries: int, keys: int, causal: bool, masked: bool) -> None:
    make = torch.Generator().manual_seed(width + keys)
    q, k, v = (torch.randn(2, heads, rows, width, generator=make).to(torch.bfloat16)
               for heads, rows in ((10, queries), (2, keys), (2, keys)))  # fmt: skip
    mask = torch.rand(2, 1, queries, keys, generator=make) > 0.3 if masked else None
    tiles, vectors = both(lambda: avx512.attention(q, k, v, mask, causal=causal))
    assert torch.allclose(tiles.float(), vectors.float(), rtol=2**-6, atol=2**-6)


def test_a_large_output_is_written_past_the_caches() -> None:
    layer = packed("int8-channel-sym/a8-token", 64, 8224)
    x = torch.randn(1100, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert 2 * 1100 * 8224 > 16 << 20
    assert torch.equal(*both(layer, x))
