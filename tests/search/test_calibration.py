"""The divergence at which the metric's margin is expected to cross 0."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoquant.search.calibration import crossing


def test_a_straight_line_is_crossed_where_it_is_0() -> None:
    x = [0.0, 1.0, 2.0, 4.0]
    assert crossing(x, [v - 1.5 for v in x], 1.0, 2.0) == pytest.approx(1.5)


def test_two_that_are_out_of_order_are_pooled() -> None:
    """A lucky pass above a failure: both count, and the crossing is not at either."""
    assert crossing([1, 2, 3, 4], [-1, 0.6, -0.5, 1], 1.0, 4.0) == pytest.approx(1 + 1 / 1.05)


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.floats(-1, 1)), max_size=8), st.floats(1e-4, 1), st.floats(1.06, 100))
def test_the_bracket_shrinks_whatever_the_trials_say(
    trials: list[tuple[float, float]], low: float, ratio: float
) -> None:
    high = low * ratio
    found = crossing([x for x, _ in trials] + [low, high], [m for _, m in trials] + [-0.1, 0.1], low, high)
    assert 0.249 <= math.log(found / low) / math.log(ratio) <= 0.751
