"""The surrogate as an Optuna sampler, and the only file besides `study.py` that knows Optuna's sampler interface.

Its state is rebuilt from the study's storage at each proposal, so that a resumed run goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from autoquant.search.problem import Choice, Problem
from autoquant.search.surrogate import fit_theta, solve

BASE = "base_dtype"
FIXED = "fixed_params"
"""Where Optuna keeps the parameters of an enqueued trial."""
CLOSE = 1.05
"""Allowances this close to each other are not told apart any more: the search has converged."""
WORTH = 1.005
"""A proposal must promise this many times the incumbent's saving."""


@dataclass(frozen=True)
class Seen:
    """What the sampler needs to know of a finished trial."""

    base: str
    choice: Choice
    saving: float
    margin: float
    divergence: float
    predicted: float


class Exhausted(Exception):  # noqa: N818
    """No map is left that promises more than the best one found."""


def space_of(problem: Problem) -> dict[str, BaseDistribution]:
    """One categorical parameter a group, and one for the base dtype."""
    space: dict[str, BaseDistribution] = {BASE: CategoricalDistribution(problem.base_dtypes)}
    for group, options in zip(problem.groups, problem.options, strict=True):
        if len(options) > 1:
            space[group.name] = CategoricalDistribution(options)
    return space


def to_params(problem: Problem, base: str, choice: Choice) -> dict[str, str]:
    chosen = {
        group.name: options[index]
        for group, options, index in zip(problem.groups, problem.options, choice, strict=True)
        if len(options) > 1
    }
    return {BASE: base, **chosen}


def from_params(problem: Problem, params: dict[str, Any]) -> tuple[str, Choice]:
    choice = tuple(
        options.index(params[group.name]) if group.name in params else 0
        for group, options in zip(problem.groups, problem.options, strict=True)
    )
    return params[BASE], choice


def params_of(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial, which one that has not begun does not have as its own yet."""
    return {**trial.system_attrs.get(FIXED, {}), **trial.params}


def seen_trials(problem: Problem, study: optuna.Study) -> list[Seen]:
    found = []
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        base, choice = from_params(problem, trial.params)
        attrs = trial.user_attrs
        figures = (attrs["margin"], attrs["divergence"], attrs["predicted_divergence"])
        found.append(Seen(base, choice, trial.value or 0.0, *figures))
    return found


def tried_choices(problem: Problem, study: optuna.Study) -> dict[str, list[Choice]]:
    """Base dtype → choices of all trials, failed and running ones too: none is evaluated twice."""
    tried: dict[str, list[Choice]] = {base: [] for base in problem.base_dtypes}
    for trial in study.get_trials(deepcopy=False):
        params = params_of(trial)
        if space_of(problem).keys() <= params.keys():  # a killed run can leave a trial with some of its parameters
            base, choice = from_params(problem, params)
            tried[base].append(choice)
    return tried


class SurrogateSampler(optuna.samplers.BaseSampler):
    """Propose the exact optimum of the corrected surrogate under the divergence that the trials so far allow.

    `Exhausted` is raised out of `sample_relative` when no untried map promises more than the incumbent.
    """

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        self.problem = problem
        self.seed = seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return space_of(self.problem)

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        base, choice = propose(self.problem, seen_trials(self.problem, study), tried_choices(self.problem, study))
        return to_params(self.problem, base, choice)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise NotImplementedError("every parameter is proposed together")


def propose(problem: Problem, seen: Sequence[Seen], tried: dict[str, list[Choice]]) -> tuple[str, Choice]:
    """The most promising untried map over all base dtypes.

    Raises:
        Exhausted: nothing promises more than the incumbent.
    """
    best = max((s.saving for s in seen if s.margin <= 0), default=0.0)
    offsets = {base: base_divergence(seen, base) for base in problem.base_dtypes}
    theta = fit_theta(problem, [s.choice for s in seen], [s.divergence for s in seen], [offsets[s.base] for s in seen])
    for allowance in allowances(problem, seen, theta, offsets):
        proposals = []
        for base in problem.base_dtypes:
            if allowance < offsets[base]:
                continue
            choice = solve(problem, base, allowance - offsets[base], theta=theta, tried=tried[base])
            if choice is None:
                continue
            promised = held(problem, seen, base) * promise(problem, base, choice)
            if promised > WORTH * best:
                proposals.append((promised, base, choice))
        if proposals:
            _, base, choice = max(proposals, key=lambda item: item[0])
            return base, choice
    raise Exhausted


def held(problem: Problem, seen: Sequence[Seen], base: str) -> float:
    """The share of its promised saving that a quantized map keeps end to end: median in this base dtype, else in all."""
    quantized = [s for s in seen if any(s.choice)]
    kept = [s.saving / promise(problem, s.base, s.choice) for s in quantized if s.base == base] or [
        s.saving / promise(problem, s.base, s.choice) for s in quantized
    ]
    return median(kept) if kept else 1.0


def promise(problem: Problem, base: str, choice: Choice) -> float:
    """The saving that the prices add up to; measured end to end it comes out a little different."""
    return problem.saving(problem.total_ms(base, choice), problem.total_bytes(base, choice))


def base_divergence(seen: Sequence[Seen], base: str) -> float:
    """What casting the whole model to `base` adds: observed on the map without any quantized layer, else 0."""
    return next((s.divergence for s in seen if s.base == base and not any(s.choice)), 0.0)


def allowances(problem: Problem, seen: Sequence[Seen], theta: np.ndarray, offsets: dict[str, float]) -> Iterator[float]:
    """Divergences to allow, one after the other until a map under one of them is worth a trial.

    Everything while nothing has failed. Else between the largest that passed and the smallest above it that did not: a
    bisection of the one-dimensional front (geometric means), upwards while nothing below is worth it. Once both ends
    have met, as much as has passed: a map that was overlooked may be under it still.
    """
    predicted = [(problem.score(s.choice, theta) + offsets[s.base], s.margin) for s in seen]
    passed = max((d for d, margin in predicted if margin <= 0), default=0.0)
    failed = min((d for d, margin in predicted if margin > 0 and d > passed), default=math.inf)
    if math.isinf(failed):
        yield math.inf
        return
    low = max(passed, failed * 1e-3)
    if failed <= CLOSE * low:
        yield low
        return
    while failed > CLOSE * low:
        low = math.sqrt(low * failed)
        yield low
    yield failed * (1 - 1e-6)  # few maps, far apart: the best of them may be just below the one that failed
