"""What trials have shown of the profile: its scores, corrected.

A score is s · exp(θ + w + a): θ is of its group, w of how its scheme rounds weights, a of how it rounds inputs. Each is normal
about 0, and all are fitted to the observed divergences by maximum a posteriori (Gauss–Newton on log observed - log predicted).
Groups alone do not explain what was seen: the harm of a range that was calibrated, or that a whole tensor shares, is
underestimated several times over in language models, for what exceeds it is rare. What was measured exactly since (`exact`)
has its group's θ only, which stands for how layers act together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autoquant.search.problem import FLOAT, Choice, Problem

GROUP_DEVIATION = 0.6
SCHEME_DEVIATION = 0.6
NOISE_DEVIATION = 0.05
"""Of log(observed / predicted) from one trial to the next."""


def corrected(
    problem: Problem, choices: Sequence[Choice], observed: Sequence[float], offsets: Sequence[float]
) -> Problem:
    """The problem with the scores that explain what was observed; as it is where nothing was.

    Args:
        observed: divergence of each choice's model. offsets: what its base dtype adds by itself.
    """
    places = _places(problem)
    kinds = max((int(p.max()) for p in places), default=-1) + 1
    count = len(places)
    rows = np.array([[float(s[i]) for s, i in zip(problem.scores, c, strict=True)] for c in choices]).reshape(-1, count)
    target = np.maximum(np.asarray(observed, float) - np.asarray(offsets, float), 1e-12)
    keep = rows.sum(1) > 0
    if not keep.any():
        return problem
    rows, target = rows[keep], target[keep]
    features = [_features(places, c, kinds) for c, kept in zip(choices, keep, strict=True) if kept]
    hold = np.concatenate([np.full(count, GROUP_DEVIATION**-2), np.full(kinds, SCHEME_DEVIATION**-2)])
    found = np.zeros(count + kinds)
    for _ in range(20):
        weighted = np.array([row * np.exp(one @ found) for row, one in zip(rows, features, strict=True)])
        predicted = weighted.sum(1)
        jacobian = np.array([w @ one / p for w, one, p in zip(weighted, features, predicted, strict=True)])
        residual = np.log(target) - np.log(predicted)
        hessian = jacobian.T @ jacobian / NOISE_DEVIATION**2 + np.diag(hold)
        step = np.linalg.solve(hessian, jacobian.T @ residual / NOISE_DEVIATION**2 - hold * found)
        found = found + np.clip(step, -0.5, 0.5)
        if np.abs(step).max() < 1e-4:
            break
    by_kind = np.append(found[count:], 0.0)  # a place of -1 is none
    factors = [np.exp(theta + by_kind[p].sum(1)) for theta, p in zip(found[:count], places, strict=True)]
    return replace(problem, scores=tuple(s * f for s, f in zip(problem.scores, factors, strict=True)))


def _places(problem: Problem) -> list[np.ndarray]:
    """Group → (options, 2): numbers of the corrections of its weights and its inputs, -1 for none."""
    known: dict[tuple[int, str], int] = {}
    found = []
    for number, options in enumerate(problem.options):
        own = np.full((len(options), 2), -1)
        for row, name in zip(own, options, strict=True):
            if name != FLOAT and (number, name) not in problem.exact:
                for part, text in enumerate(name.split("/")[:2]):
                    row[part] = known.setdefault((part, text), len(known))
        found.append(own)
    return found


def _features(places: Sequence[np.ndarray], choice: Choice, kinds: int) -> np.ndarray:
    """(groups, groups + kinds) of 0 and 1: which corrections each group's score has under this choice."""
    found = np.hstack([np.eye(len(places)), np.zeros((len(places), kinds))])
    for row, own, index in zip(found, places, choice, strict=True):
        row[[len(places) + k for k in own[index] if k >= 0]] = 1
    return found
