"""Codes of inputs with outlier channels: 16 bits for a few channels, so that the scale fits the others."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from autoquant.errors import SchemeError
from autoquant.schemes import OUTLIER_MAX, SCHEMES, outlier_channels, quantize_input, split_outliers
from autoquant.values import QuantizationArgs

TOKEN, OUTLIER = SCHEMES["int8-channel-sym/a8-token"].input, SCHEMES["int8-channel-sym/a8-outlier"].input
assert TOKEN is not None and OUTLIER is not None


@st.composite
def inputs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of very different magnitude, some of zeros, and 16 of their channels, larger than the others by up to 10,000."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(17, 90))
    make = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(rows, columns, generator=make)
    outliers = torch.randperm(columns, generator=make)[:16].to(torch.int32)
    x[:, outliers.long()] *= 10.0 ** draw(st.integers(0, 4))
    x *= torch.tensor([[draw(st.sampled_from([0.0, 1e-20, 1.0, 1e20]))] for _ in range(rows)])
    return x, outliers


@given(inputs())
def test_every_value_is_within_half_a_scale_and_only_outliers_have_wide_codes(
    case: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, outliers = case
    codes, scale = quantize_input(x, OUTLIER, None, outliers)
    assert codes.dtype == torch.int16 and scale.shape == (len(x), 1)
    error = (x - codes.float() * scale).abs()  # the largest positive value lies half a code beyond 127
    assert bool((error <= scale * (0.5 + 1e-4) + x.abs() * 1e-6).all())
    near = torch.ones(x.shape[1], dtype=torch.bool)
    near[outliers.long()] = False
    assert int(codes[:, near].abs().max()) <= 128 and int(codes.abs().max()) <= OUTLIER_MAX + 1


@given(inputs())
def test_the_scale_is_never_coarser_than_with_one_scale_for_all(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, outliers = case
    assert bool((quantize_input(x, OUTLIER, None, outliers)[1] <= quantize_input(x, TOKEN)[1]).all())


@given(inputs())
def test_two_digits_are_the_code(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, outliers = case
    codes, _ = quantize_input(x, OUTLIER, None, outliers)
    low, high = split_outliers(codes, outliers)
    assert low.dtype == high.dtype == torch.int8 and high.shape == (len(x), len(outliers))
    again = low.int()
    again[:, outliers.long()] += 256 * high.int()
    assert torch.equal(again, codes.int())


def test_the_ends_of_the_range() -> None:
    """32,639 is the largest code of two digits; 32,767 would need a high digit of 128."""
    outliers = torch.arange(16, dtype=torch.int32)
    x = torch.zeros(2, 32)
    x[0, 0], x[1, 0] = 1.0, -1.0  # the others are 0: the outlier alone decides
    codes, scale = quantize_input(x, OUTLIER, None, outliers)
    assert codes[:, 0].tolist() == [OUTLIER_MAX, -OUTLIER_MAX] and torch.allclose(codes[:, :1] * scale, x[:, :1])
    low, high = split_outliers(codes, outliers)
    assert high[:, 0].tolist() == [127, -127] and low[:, 0].tolist() == [127, -127]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 20])
def test_what_is_not_finite_is_not_rounded_away(bad: float, place: int) -> None:
    x = torch.ones(3, 32)
    x[1, place] = bad
    _, scale = quantize_input(x, OUTLIER, None, torch.arange(16, dtype=torch.int32))
    assert scale.isnan().flatten().tolist() == [False, True, False]


@pytest.mark.parametrize(("inputs", "count"), [(20, 16), (384, 16), (576, 32), (768, 48), (1536, 64), (11008, 64)])
def test_one_channel_in_sixteen_and_those_with_the_largest_values(inputs: int, count: int) -> None:
    absmax = torch.rand(inputs, generator=torch.Generator().manual_seed(0))
    found = outlier_channels(absmax)
    assert len(found) == count and found.dtype == torch.int32 and found.tolist() == sorted(found.tolist())
    others = torch.ones(inputs, dtype=torch.bool)
    others[found.long()] = False
    assert absmax[found.long()].min() >= absmax[others].max()


def test_the_channels_must_be_known_and_the_scale_a_tokens() -> None:
    with pytest.raises(SchemeError, match="needs to know them"):
        quantize_input(torch.ones(2, 32), OUTLIER)
    with pytest.raises(SchemeError, match="one scale a token"):
        QuantizationArgs("tensor", dynamic=True, outliers=True)
