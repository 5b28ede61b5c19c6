"""How much divergence the budget allows: the metric's margin as a monotone function of divergence, fitted to the trials.

Isotonic regression (Barlow et al. 1972; `scipy.optimize.isotonic_regression`): nothing is supposed of the function but
that more divergence does not help. It proposes; each map is still judged by the metric itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

STEP = 0.25
"""A crossing is kept this share (of the logarithmic distance) away from both ends, so that the bracket shrinks for sure."""


def crossing(divergences: Sequence[float], margins: Sequence[float], low: float, high: float) -> float:
    """The divergence in (low, high) at which the fitted margin reaches 0, linear between trials.

    Args:
        divergences, margins: of the trials; a margin of 0 or less is within the budget.
        low, high: the largest divergence that passed and the smallest beyond it that did not, 0 < low < high.
    """
    order = np.argsort(divergences, kind="stable")
    x = np.asarray(divergences, float)[order]
    fitted = isotonic_regression(np.asarray(margins, float)[order]).x
    inside = low * (high / low) ** 0.5
    above = int(np.searchsorted(fitted, 0.0, side="right"))
    if 0 < above < len(x) and fitted[above] > fitted[above - 1]:
        share = -fitted[above - 1] / (fitted[above] - fitted[above - 1])
        inside = x[above - 1] + share * (x[above] - x[above - 1])
    return float(np.clip(inside, low * (high / low) ** STEP, low * (high / low) ** (1 - STEP)))
