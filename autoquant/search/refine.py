"""When the surrogate is off, a few one-layer divergences are measured exactly instead of predicted.

Off: the divergence of a map is not within `TRUSTED` times of what profile and corrections predicted before it was seen, by more
than its standard error, which it has if the race ended before all items were read. Only maps that were proposed are looked at:
from those that a search begins with the corrections are learned that it proposes by. Only pairs of a group and a scheme that
matter next are measured: those in which the maps proposed just below, at and just above the allowance differ, and those that
the map owes most of its divergence to. Once such pairs have come to what was predicted of them, no more are measured: then
layers act together, which the corrections learn from whole maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import optuna

from autoquant.search.ledger import REFINED, Seen, as_refined, refined, seen_trials
from autoquant.search.problem import FLOAT, Problem
from autoquant.search.strategies.surrogate import allowances, correct
from autoquant.search.surrogate import solve

TRUSTED = (0.8, 1.25)
"""Observed / predicted divergence between these is as good as a sum over layers gets."""
PAIRS = 8
"""Most pairs that are measured after one trial."""
EVENT = "refinement"
"""User attribute of a trial: what was noticed at it and measured after it."""

Measure = Callable[[str, dict[str, str]], tuple[float, int]]
"""(base dtype, layer → scheme) → (divergence of that model, items read)."""
Pair = tuple[int, int]


def refine_if_off(problem: Problem, study: optuna.Study, last: Seen, measure: Measure) -> dict[str, Any]:
    """Look at a map that has just been judged; returns attributes for its trial, none if all is well."""
    known = refined(study)
    now = as_refined(problem, study)
    before = seen_trials(now, study)
    predicted = predict(now, before, last)
    if not last.proposed or not any(last.choice) or predicted <= 0 or last.divergence <= 0:
        return {}
    ratio, error = last.divergence / predicted, last.divergence_error / predicted
    if TRUSTED[0] - error <= ratio <= TRUSTED[1] + error:
        return {}
    read = 0
    found: dict[str, dict[str, float]] = {}
    if (confirmed := _confirmed(study)) is not None:
        return {EVENT: {"ratio": ratio, "pairs": 0, "items": 0, "alone": confirmed}}
    pairs = [(g, i) for g, i in _ambiguous(now, [*before, last], last)
             if now.options[g][i] not in known.get(now.groups[g].name, {})][:PAIRS]  # fmt: skip
    base = now.base_dtypes[0]
    for group, option in pairs:
        alone = tuple(option if g == group else 0 for g in range(len(now.groups)))
        divergence, items = measure(base, now.layers(base, alone))
        found.setdefault(now.groups[group].name, {})[now.options[group][option]] = max(divergence, 0.0)
        read += items
    expected = sum(float(now.scores[group][option]) for group, option in pairs)
    measured = sum(sum(own.values()) for own in found.values())
    event = {"ratio": ratio, "pairs": len(pairs), "items": read, "alone": measured / expected if expected > 0 else None}
    return {REFINED: found, EVENT: event}


def _confirmed(study: optuna.Study) -> float | None:
    """Measured / predicted of pairs that came to what was predicted; None if none have."""
    shares = [trial.user_attrs.get(EVENT, {}).get("alone") for trial in study.get_trials(deepcopy=False)]
    return next((share for share in shares if share is not None and TRUSTED[0] <= share <= TRUSTED[1]), None)


def noticed(trial: optuna.trial.FrozenTrial) -> str | None:
    """What a refinement after this trial has to say."""
    event = trial.user_attrs.get(EVENT)
    if event is None:
        return None
    pairs, alone = event["pairs"], event.get("alone")
    if pairs:
        done = f"{pairs} one-layer divergences measured"
    elif alone is not None:
        done = "single layers do not, as was measured, but together they do"
    else:
        done = "what matters next has been measured before"
    return (
        f"map {trial.number} diverges {event['ratio']:.2f}× as much as predicted: {done}; the prediction is corrected"
    )


def predict(problem: Problem, before: list[Seen], last: Seen) -> float:
    """The divergence that was to be expected of a map before it was seen."""
    problem, offsets = correct(problem, before)
    return problem.score(last.choice) + offsets[last.base]


def _ambiguous(problem: Problem, seen: list[Seen], last: Seen) -> list[Pair]:
    """Pairs near the proposed front, the largest contribution to the divergence first."""
    problem, offsets = correct(problem, seen)
    own = offsets[last.base]
    allowance = next(allowances(problem, seen, offsets))
    allowance = last.divergence if math.isinf(allowance) else allowance
    near = [solve(problem, last.base, max(factor * allowance - own, 0.0)) for factor in (*TRUSTED, 1.0)]
    fronts = [choice for choice in near if choice is not None]
    differing = {(g, c[g]) for c in fronts for g in range(len(problem.groups)) if len({f[g] for f in fronts}) > 1}
    share = {(g, i): float(problem.scores[g][i]) for g, i in {*differing, *enumerate(last.choice)}}
    heavy = sorted(((g, i) for g, i in enumerate(last.choice)), key=lambda pair: -share[pair])[: PAIRS // 2]
    wanted = [pair for pair in {*differing, *heavy} if problem.options[pair[0]][pair[1]] != FLOAT]
    return sorted(wanted, key=lambda pair: (-share[pair], pair))


def items_read(study: optuna.Study) -> int:
    """Items of the search split that refinements have read."""
    return sum(trial.user_attrs.get(EVENT, {}).get("items", 0) for trial in study.get_trials(deepcopy=False))
