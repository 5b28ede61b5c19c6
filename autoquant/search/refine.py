"""When the surrogate is off, a few one-layer divergences are measured exactly instead of predicted.

Off: the divergence of a map is not within `TRUSTED` times of what profile and corrections predicted before it was seen. Only
pairs of a group and a scheme that matter next are measured: those in which the maps proposed just below, at and just
above the allowance differ, and those that the map owes most of its divergence to.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import optuna

from autoquant.search.ledger import REFINED, Seen, as_refined, seen_trials
from autoquant.search.problem import FLOAT, Problem
from autoquant.search.strategies.surrogate import allowances, correction
from autoquant.search.surrogate import solve

TRUSTED = (0.8, 1.25)
"""Observed / predicted divergence between these is as good as a sum over layers gets."""
PAIRS = 8
"""Most pairs that are measured after one trial."""
EVENTS = "refinements"
"""User attribute of a study: what was noticed and measured, a dictionary an event."""

Measure = Callable[[str, dict[str, str]], tuple[float, int]]
"""(base dtype, layer → scheme) → (divergence of that model, items read)."""
Pair = tuple[int, int]


def refine_if_off(problem: Problem, study: optuna.Study, measure: Measure) -> str | None:
    """Look at the last trial; returns what was noticed and done, None if all is well."""
    now = as_refined(problem, study)
    *before, last = seen_trials(now, study)
    predicted = predict(now, before, last)
    if not any(last.choice) or predicted <= 0 or last.divergence <= 0:
        return None
    ratio = last.divergence / predicted
    if TRUSTED[0] <= ratio <= TRUSTED[1]:
        return None
    known: dict[str, dict[str, float]] = {
        name: dict(found) for name, found in study.user_attrs.get(REFINED, {}).items()
    }
    read = 0
    pairs = [(g, i) for g, i in _ambiguous(now, [*before, last], last)
             if now.options[g][i] not in known.get(now.groups[g].name, {})][:PAIRS]  # fmt: skip
    base = now.base_dtypes[0]
    for group, option in pairs:
        alone = tuple(option if g == group else 0 for g in range(len(now.groups)))
        found, items = measure(base, now.layers(base, alone))
        known.setdefault(now.groups[group].name, {})[now.options[group][option]] = max(found, 0.0)
        read += items
    study.set_user_attr(REFINED, known)
    number = max(t.number for t in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
    event = {"trial": number, "ratio": ratio, "pairs": len(pairs), "items": read}
    study.set_user_attr(EVENTS, [*study.user_attrs.get(EVENTS, []), event])
    done = f"{len(pairs)} one-layer divergences measured" if pairs else "what matters next has been measured before"
    return f"map {number} diverges {ratio:.2f}× as much as predicted: {done}; the prediction is corrected"


def predict(problem: Problem, before: list[Seen], last: Seen) -> float:
    """The divergence that was to be expected of a map before it was seen."""
    theta, offsets = correction(problem, before)
    return problem.score(last.choice, theta) + offsets[last.base]


def _ambiguous(problem: Problem, seen: list[Seen], last: Seen) -> list[Pair]:
    """Pairs near the proposed front, the largest contribution to the divergence first."""
    theta, offsets = correction(problem, seen)
    own = offsets[last.base]
    allowance = next(allowances(problem, seen, theta, offsets))
    allowance = last.divergence if math.isinf(allowance) else allowance
    near = [solve(problem, last.base, max(factor * allowance - own, 0.0), theta=theta) for factor in (*TRUSTED, 1.0)]
    fronts = [choice for choice in near if choice is not None]
    differing = {(g, c[g]) for c in fronts for g in range(len(problem.groups)) if len({f[g] for f in fronts}) > 1}
    share = {(g, i): float(problem.scores[g][i]) for g, i in {*differing, *enumerate(last.choice)}}
    heavy = sorted(((g, i) for g, i in enumerate(last.choice)), key=lambda pair: -share[pair])[: PAIRS // 2]
    wanted = [pair for pair in {*differing, *heavy} if problem.options[pair[0]][pair[1]] != FLOAT]
    return sorted(wanted, key=lambda pair: (-share[pair], pair))


def items_read(study: optuna.Study) -> int:
    """Items of the search split that refinements have read."""
    return sum(event["items"] for event in study.user_attrs.get(EVENTS, []))
