"""A Gaussian process over a handful of knobs, each setting of which the mixed-integer program turns into a map.

A GP over hundreds of categorical parameters learns nothing from a few dozen trials; over five knobs it does. The knobs say
how far the profile is to be trusted: the allowance, and how much heavier late layers, embeddings and quantized activations
weigh than the profile says.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from autoquant.search.ledger import (
    BASE,
    Exhausted,
    as_refined,
    seen_trials,
    slowdown,
    tried_choices,
)
from autoquant.search.problem import Choice, Problem
from autoquant.search.strategies.base import MapSampler, Strategy
from autoquant.search.surrogate import solve, solve_capped

KNOBS = "knobs"
"""User attribute of a trial: the setting that its map was made from."""
ALLOWANCE, LATE, EMBEDDING, ACTIVATIONS = "log_allowance", "late", "embedding", "activations"
RANGE = 1.5
"""A weight is between exp(-RANGE) and exp(RANGE)."""
DECADES = 4
"""Of divergence below the worst map's that the allowance covers."""
STARTUP = 3
"""Random settings before the process is fitted."""
MORE = 4.0
"""Times the allowance, where nothing untried is under it."""


class GPSampler(MapSampler):
    """Optuna's `GPSampler` (log expected improvement under constraints) on the knobs, refitted to all trials each time."""

    def propose(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> tuple[str, Choice]:
        problem, tried = as_refined(self.problem, study), tried_choices(self.problem, study)
        inner = self._inner(problem, study)
        for _ in range(5):  # a setting whose every map has been tried is not the end
            asked = inner.ask(_space(problem))
            found = decode(problem, asked.params, tried, self._slowdown(study, asked.params[BASE]))
            if found is not None:
                # The public way to an attribute is by the Trial, which a sampler is not given.
                study._storage.set_trial_user_attr(trial._trial_id, KNOBS, dict(asked.params))
                return found
            inner.tell(asked, state=optuna.trial.TrialState.FAIL)
        raise Exhausted

    def _slowdown(self, study: optuna.Study, base: str) -> float:
        return slowdown(self.problem, seen_trials(self.problem, study), base)

    def _inner(self, problem: Problem, study: optuna.Study) -> optuna.Study:
        done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.GPSampler(
                seed=self.seed + len(study.get_trials(deepcopy=False)),
                n_startup_trials=STARTUP,
                deterministic_objective=True,
            )
        inner = optuna.create_study(direction="maximize", sampler=sampler)
        for trial, seen in zip(done, seen_trials(problem, study), strict=True):
            knobs = trial.user_attrs.get(KNOBS) or encode(problem, seen.base, seen.choice)
            margin = seen.over if problem.capped else seen.margin
            inner.add_trial(
                optuna.trial.create_trial(
                    params=knobs, distributions=_space(problem), value=trial.value, constraints={"accuracy": margin}
                )
            )
        return inner


def _worst(problem: Problem) -> float:
    return sum(float(scores.max()) for scores in problem.scores) or 1.0


def _space(problem: Problem) -> dict[str, BaseDistribution]:
    top = math.log(_worst(problem))
    weights = {name: FloatDistribution(-RANGE, RANGE) for name in (LATE, EMBEDDING, ACTIVATIONS)}
    return {
        BASE: CategoricalDistribution(problem.base_dtypes),
        ALLOWANCE: FloatDistribution(top - DECADES * math.log(10), top),
        **weights,
    }


def encode(problem: Problem, base: str, choice: Choice) -> dict[str, Any]:
    """The setting nearest to a map that was not made from one: what it is predicted to cost, all weights neutral."""
    space = _space(problem)[ALLOWANCE]
    assert isinstance(space, FloatDistribution)
    score = math.log(max(problem.score(choice), 1e-300))
    return {BASE: base, ALLOWANCE: min(max(score, space.low), space.high), LATE: 0.0, EMBEDDING: 0.0, ACTIVATIONS: 0.0}


def decode(
    problem: Problem, knobs: Mapping[str, Any], tried: Mapping[str, list[Choice]], slow: float = 1.0
) -> tuple[str, Choice] | None:
    """The best untried map under a setting's allowance and weights; None if its base dtype has none left.

    Where all maps under the allowance have been tried, more is allowed.
    """
    base, last = knobs[BASE], max(len(problem.groups) - 1, 1)
    scores = []
    for place, (group, options, s) in enumerate(zip(problem.groups, problem.options, problem.scores, strict=True)):
        weight = knobs[LATE] * (place / last - 0.5)
        weight += knobs[EMBEDDING] if group.layers[0].kind == "embedding" else 0.0
        heavier = np.array([knobs[ACTIVATIONS] if "/" in name else 0.0 for name in options])
        scores.append(s * np.exp(weight + heavier))
    weighted = replace(problem, scores=tuple(scores))
    choice: Choice | None = None
    if problem.capped:
        choice = solve_capped(weighted, base, slow=slow, tried=tried[base])
    else:
        allowance, most = math.exp(knobs[ALLOWANCE]), MORE * _worst(weighted)
        while choice is None and allowance < most:
            choice = solve(weighted, base, allowance, tried=tried[base])
            allowance *= MORE
    return None if choice is None else (base, choice)


GP = Strategy(
    "a Gaussian process over five knobs: base dtype, allowance, and how late layers, embeddings and activations weigh",
    GPSampler,
    guided=True,
)
