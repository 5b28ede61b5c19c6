"""Properties of int8 rounding, on whatever matrix hypothesis can think of."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs as PeerArgs
from compressed_tensors.quantization.lifecycle.forward import quantize as peer_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given

from autoquant.errors import NumericsError, SchemeError
from autoquant.schemes import QuantizedTensor, dequantize, quantize, quantize_input
from autoquant.values import QuantizationArgs

WEIGHTS = [
    QuantizationArgs(strategy, bits, symmetric=sym)
    for strategy, bits in (("tensor", 8), ("channel", 8), ("channel", 6), ("channel", 4))
    for sym in (True, False)
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
args = st.sampled_from(WEIGHTS)
dtypes = st.sampled_from(DTYPES)


@st.composite
def matrices(draw: st.DrawFn, lowest: int = -40, highest: int = 30) -> torch.Tensor:
    """Odd shapes, rows of very different magnitude, offsets, zero rows and constant rows."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 21))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weight = torch.randn(rows, columns, generator=generator) + draw(st.sampled_from([0.0, 0.5, 3.0, -3.0]))
    exponents = [10.0 ** draw(st.integers(lowest, highest)) for _ in range(rows)]
    weight = weight * torch.tensor(exponents)[:, None]
    kinds = draw(st.lists(st.sampled_from(["as it is", "zero", "constant"]), min_size=rows, max_size=rows))
    for row, kind in enumerate(kinds):
        if kind != "as it is":
            weight[row] = 0 if kind == "zero" else weight[row, 0].item()
    return weight


def slack(weight: torch.Tensor) -> torch.Tensor:
    """What float32 arithmetic on numbers of this size may be off by."""
    return weight.abs() * 1e-6


@given(matrices(), args)
def test_every_element_is_within_half_a_scale(weight: torch.Tensor, scheme: QuantizationArgs) -> None:
    q = quantize(weight, scheme)
    error = (weight - dequantize(q)).abs()
    assert bool((error <= q.scale * (0.5 + 1e-4) + slack(weight)).all())


@given(matrices(-3, 4), args, st.sampled_from([torch.bfloat16, torch.float16]))
def test_the_bound_holds_for_a_scale_that_is_stored_in_half_precision(
    weight: torch.Tensor, scheme: QuantizationArgs, dtype: torch.dtype
) -> None:
    q = quantize(weight, scheme, scale_dtype=dtype)
    assert q.scale.dtype == dtype
    error = (weight - dequantize(q, torch.float32)).abs()
    assert bool((error <= q.scale.float() * (0.5 + 1e-4) + slack(weight)).all())


@given(matrices(-3, 4), args, st.sampled_from([torch.bfloat16, torch.float16]))
def test_a_stored_scale_is_rounded_up_and_by_no_more_than_one_step(
    weight: torch.Tensor, scheme: QuantizationArgs, dtype: torch.dtype
) -> None:
    exact, stored = quantize(weight, scheme).scale, quantize(weight, scheme, scale_dtype=dtype).scale
    assert bool((stored.float() >= exact).all())
    below = torch.nextafter(stored, torch.zeros_like(stored)).float()
    assert bool(((below < exact) | (stored.float() == exact)).all())


@given(matrices(), args, dtypes)
def test_quantizing_what_was_dequantized_gives_the_same_codes(
    weight: torch.Tensor, scheme: QuantizationArgs, dtype: torch.dtype
) -> None:
    top = 1e6 if scheme.num_bits == 8 else 4e5  # a scale of 4 bits then fits float16
    weight = weight.clamp(-top, top)
    q = quantize(weight, scheme, scale_dtype=dtype)
    values = dequantize(q, torch.float32)
    zero = 0 if q.zero_point is None else q.zero_point.float()
    assert torch.equal(torch.round(values / q.scale.float()) + zero, q.values.float())


@given(matrices(), args)
def test_zero_is_kept_exactly(weight: torch.Tensor, scheme: QuantizationArgs) -> None:
    weight[:, 0] = 0
    assert bool((dequantize(quantize(weight, scheme))[:, 0] == 0).all())


@given(matrices(), args, dtypes, dtypes)
def test_shapes_and_dtypes_are_those_promised_and_the_weight_is_unchanged(
    weight: torch.Tensor, scheme: QuantizationArgs, weight_dtype: torch.dtype, scale_dtype: torch.dtype
) -> None:
    weight = weight.clamp(-6e4, 6e4).to(weight_dtype)
    before = weight.clone()
    q = quantize(weight, scheme, scale_dtype=scale_dtype)
    assert torch.equal(weight, before) and weight.dtype == weight_dtype
    shape = (weight.shape[0], 1) if scheme.strategy == "channel" else (1,)
    assert q.values.shape == weight.shape and q.values.dtype == torch.int8
    assert q.scale.shape == shape and q.scale.dtype == scale_dtype
    assert (q.zero_point is None) == scheme.symmetric
    if q.zero_point is not None:
        assert q.zero_point.shape == shape and q.zero_point.dtype == torch.int8
    assert bool(torch.isfinite(q.scale).all()) and bool((q.scale > 0).all())
    assert dequantize(q).dtype == scale_dtype and dequantize(q).shape == weight.shape


@given(matrices(), st.booleans(), dtypes)
def test_per_channel_is_never_coarser_than_per_tensor(
    weight: torch.Tensor, symmetric: bool, dtype: torch.dtype
) -> None:
    weight = weight.clamp(-1e6, 1e6)
    channel = quantize(weight, QuantizationArgs("channel", symmetric=symmetric), scale_dtype=dtype)
    tensor = quantize(weight, QuantizationArgs("tensor", symmetric=symmetric), scale_dtype=dtype)
    used = weight.abs().amax(1) > 0  # a row of zeros has no error whatever its scale
    assert bool((channel.scale[used] <= tensor.scale).all())


@given(matrices(-6, 6), args)
def test_symmetric_codes_are_symmetric(weight: torch.Tensor, scheme: QuantizationArgs) -> None:
    if scheme.symmetric:
        q, mirrored = quantize(weight, scheme), quantize(-weight, scheme)
        top = 2 ** (scheme.num_bits - 1) - 1
        assert torch.equal(q.values, -mirrored.values) and int(q.values.min()) >= -top


@pytest.mark.parametrize("scheme", WEIGHTS, ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-42, -1e-42, 1e-38, 1e30, -1e30, 3e38])
def test_a_single_element_and_a_constant_matrix(scheme: QuantizationArgs, value: float) -> None:
    for shape in ((1, 1), (3, 5)):
        weight = torch.full(shape, value)
        found = dequantize(quantize(weight, scheme))
        assert torch.allclose(found, weight, rtol=1e-2, atol=1e-38), found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_weights_keep_all_their_levels_in_half_precision(dtype: torch.dtype) -> None:
    weight = torch.linspace(-1e-3, 1e-3, 201)[None]
    q = quantize(weight, WEIGHTS[0], scale_dtype=dtype)
    assert len(q.values.unique()) > 190


@pytest.mark.parametrize("scheme", WEIGHTS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_by_name(scheme: QuantizationArgs, bad: float) -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = bad
    with pytest.raises(NumericsError, match="layer.7.weight holds 1 NaN or infinite"):
        quantize(weight, scheme, name="layer.7.weight")


@pytest.mark.parametrize("scheme", WEIGHTS, ids=str)
def test_a_scale_that_float16_cannot_hold_is_refused_by_name(scheme: QuantizationArgs) -> None:
    with pytest.raises(NumericsError, match="layer.7.weight.*float16"):
        quantize(torch.tensor([[1.0, 1e9]]), scheme, scale_dtype=torch.float16, name="layer.7.weight")


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 2, 2)])
def test_only_non_empty_matrices(shape: tuple[int, ...]) -> None:
    with pytest.raises(SchemeError, match="non-empty matrix"):
        quantize(torch.ones(shape), WEIGHTS[0])


def test_a_weight_has_no_tokens_and_a_static_range_must_be_given() -> None:
    with pytest.raises(SchemeError, match="not per token"):
        quantize(torch.ones(2, 2), QuantizationArgs("token"))
    with pytest.raises(SchemeError, match="calibrated range"):
        quantize_input(torch.ones(2, 2), QuantizationArgs("tensor", dynamic=False))


def test_a_transposed_view_is_quantized_like_its_copy() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).t()
    for scheme in WEIGHTS:
        view, copy = quantize(weight, scheme), quantize(weight.contiguous(), scheme)
        assert torch.equal(view.values, copy.values) and torch.equal(view.scale, copy.scale)


def test_dequantize_is_what_its_docstring_says() -> None:
    q = QuantizedTensor(
        torch.tensor([[5, -3]], dtype=torch.int8), torch.tensor([[0.5]]), torch.tensor([[-1]], dtype=torch.int8)
    )
    assert dequantize(q).tolist() == [[3.0, -1.0]]


@given(matrices(-5, 5), st.sampled_from(["token", "tensor"]), dtypes)
def test_input_codes_are_those_of_compressed_tensors(x: torch.Tensor, strategy: str, dtype: torch.dtype) -> None:
    x = x.clamp(-6e4, 6e4).to(dtype)
    x[x.abs().amax(1) == 0] = 1  # for zeros the scales differ by definition; see the test of zeros
    if bool((x == 0).all()):
        return
    codes, scale = quantize_input(x, QuantizationArgs(strategy, dynamic=True))
    peer = PeerArgs(num_bits=8, type="int", symmetric=True, strategy=strategy, dynamic=True)
    wide = x.float()
    low, high = torch.aminmax(wide, dim=1, keepdim=True) if strategy == "token" else torch.aminmax(wide)
    peer_scale, peer_zero = calculate_qparams(low, high, peer)
    assert torch.equal(scale, peer_scale.expand_as(scale))
    assert torch.equal(codes, peer_quantize(wide, peer_scale, peer_zero, peer, dtype=torch.int8))


@given(matrices(-20, 20), st.sampled_from([True, False]), dtypes)
def test_input_codes_are_within_a_scale_and_zeros_stay_zeros(
    x: torch.Tensor, dynamic: bool, dtype: torch.dtype
) -> None:
    x = x.clamp(-6e4, 6e4).to(dtype)
    before = x.clone()
    given_scale = None if dynamic else torch.full((1,), max(float(x.abs().max()), 1e-6) / 127.5)
    codes, scale = quantize_input(x, QuantizationArgs("tensor", dynamic=dynamic), given_scale)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float32 and torch.equal(x, before)
    error = (x.float() - codes.float() * scale).abs()  # the largest positive value lies half a code beyond 127
    assert bool((error <= scale * (0.5 + 1e-4)).all())
    assert bool((codes[x == 0] == 0).all())


def test_rows_of_zeros_and_values_beyond_the_calibrated_range() -> None:
    codes, scale = quantize_input(torch.zeros(2, 3), QuantizationArgs("token", dynamic=True))
    assert not codes.any() and scale.tolist() == [[1.0], [1.0]]
    codes, _ = quantize_input(torch.tensor([[-9.0, 9.0]]), QuantizationArgs("tensor"), torch.tensor([1 / 127.5]))
    assert codes.tolist() == [[-128, 127]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_rounded_away(bad: float) -> None:
    x = torch.ones(3, 4)
    x[1, 2] = bad
    found = {
        "token": quantize_input(x, QuantizationArgs("token", dynamic=True))[1],
        "static": quantize_input(x, QuantizationArgs("tensor"), torch.ones(1))[1],
        "tensor": quantize_input(x, QuantizationArgs("tensor", dynamic=True))[1],
    }
    lost = {strategy: scale.isnan().flatten().tolist() for strategy, scale in found.items()}
    assert lost == {"token": [False, True, False], "static": [False, True, False], "tensor": [True] * 3}


@pytest.mark.parametrize("strategy", ["token", "tensor"])
def test_no_rows_give_no_codes(strategy: str) -> None:
    codes, _ = quantize_input(torch.empty(0, 5), QuantizationArgs(strategy, dynamic=True))
    assert codes.shape == (0, 5)
