"""What every scheme promises. A new scheme joins by being in `SCHEMES`."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from autoquant.checkpoint.packing import pack, pack_zero_point
from autoquant.errors import SchemeError
from autoquant.schemes import SCHEMES, computed_as, dequantize, get_scheme, layer_bytes, project, quantize
from autoquant.values import FLOAT_DTYPES, KINDS, Layer, Scheme


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return SCHEMES[request.param]


def test_its_name_is_its_key_and_says_what_it_does(scheme: Scheme) -> None:
    assert get_scheme(scheme.name) is scheme and SCHEMES[scheme.name] is scheme
    if scheme.weights is None:
        assert scheme.name == scheme.dtype and scheme.is_float and not scheme.is_static
        return
    weights, _, inputs = scheme.name.partition("/")
    args = scheme.weights
    assert weights == f"int{args.num_bits}-{args.strategy}-{'sym' if args.symmetric else 'asym'}"
    assert scheme.is_packed == (args.num_bits < 8)
    found = scheme.input
    how = "" if found is None else "static" if not found.dynamic else "outlier" if found.outliers else found.strategy
    assert inputs == (how and f"a8-{how}") and scheme.has_outliers == (how == "outlier")
    assert scheme.is_static == (inputs == "a8-static") and not scheme.is_float


def test_no_two_schemes_are_the_same() -> None:
    assert len({(s.dtype, s.weights, s.input) for s in SCHEMES.values()}) == len(SCHEMES)
    assert tuple(name for name, scheme in SCHEMES.items() if scheme.is_float) == FLOAT_DTYPES


def test_it_is_frozen_and_hashable(scheme: Scheme) -> None:
    with pytest.raises(FrozenInstanceError):
        scheme.name = "other"  # type: ignore[misc]
    assert hash(scheme) == hash(SCHEMES[scheme.name])


@pytest.mark.parametrize("kind", KINDS)
def test_projection_is_a_scheme_that_an_embedding_can_have(scheme: Scheme, kind: str) -> None:
    found = project(scheme, kind)
    assert SCHEMES[found.name] is found and project(found, kind) is found
    assert (found.dtype, found.weights) == (scheme.dtype, scheme.weights)
    assert found.input == (None if kind == "embedding" else scheme.input)


def test_its_kernels_are_those_of_a_scheme_of_8_bits(scheme: Scheme) -> None:
    found = computed_as(scheme)
    assert computed_as(found) is found and not found.is_packed and found.input == scheme.input
    if scheme.weights is None:
        assert found is scheme
    else:
        assert found.weights == replace(scheme.weights, num_bits=8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", FLOAT_DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_bytes_promised_are_bytes_of_the_tensors(scheme: Scheme, kind: str, base: str, has_bias: bool) -> None:
    scheme, dtype = project(scheme, kind), getattr(torch, base)
    layer = Layer("layer", kind, (7, 12), has_bias=has_bias)
    weight = torch.randn(layer.shape, generator=torch.Generator().manual_seed(0))
    tensors = [torch.zeros(7, dtype=dtype)] if has_bias else []
    if scheme.weights is None:
        tensors.append(weight.to(getattr(torch, str(scheme.dtype))))
    else:
        q, bits = quantize(weight, scheme.weights, scale_dtype=dtype), scheme.weights.num_bits
        values, zero = q.values, q.zero_point
        if scheme.is_packed:
            tensors.append(torch.tensor(values.shape))
            values, zero = pack(values, bits), None if zero is None else pack_zero_point(zero, bits)
        tensors += [t for t in (values, q.scale, zero) if t is not None]
        tensors += [torch.zeros(1, dtype=dtype)] if scheme.is_static else []
    assert layer_bytes(layer, scheme, base) == sum(tensor.nbytes for tensor in tensors)


def test_its_weight_survives_within_half_a_scale(scheme: Scheme) -> None:
    weight = torch.randn(9, 13, generator=torch.Generator().manual_seed(0)) + 0.5
    if scheme.weights is None:
        assert torch.allclose(weight.to(getattr(torch, str(scheme.dtype))).float(), weight, rtol=2**-8)
        return
    q = quantize(weight, scheme.weights)
    assert bool(((weight - dequantize(q)).abs() <= q.scale * 0.50001).all())


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(SchemeError, match="Did you mean 'int8-channel-sym'"):
        get_scheme("int8-chanel-sym")


@pytest.mark.parametrize("wrong", [{}, {"dtype": "float32", "weights": SCHEMES["int8-tensor-sym"].weights}])
def test_a_scheme_is_either_float_or_quantized(wrong: dict) -> None:
    with pytest.raises(SchemeError, match="either a float dtype or quantized weights"):
        Scheme("odd", **wrong)
