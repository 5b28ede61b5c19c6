"""The study as the search's ledger: maps as Optuna parameters, and what the finished trials say.

Nothing is kept beside the storage: every proposal is made from what stands there, so that a resumed run goes on where it
was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from autoquant.search.problem import Choice, Problem

BASE = "base_dtype"
FIXED = "fixed_params"
"""Where Optuna keeps the parameters of an enqueued trial."""
REFINED = "refined"
"""User attribute of a trial: group → option → one-layer divergence that was measured exactly after it."""
WORKER = "worker"
"""User attribute of a trial: who is to evaluate its map; empty while nobody is."""
CONSTRAINTS = "constraints"
"""System attribute of a trial where Optuna's samplers and optuna-dashboard look. (Optuna's own `set_constraint` writes
`constraints:NAME`, which the dashboard does not read, and is a method of a trial that was sampled in this process.)"""


@dataclass(frozen=True)
class Seen:
    """What a strategy needs to know of a finished trial.

    Attributes:
        margin: what the certified bound is expected to be, less the budget.
        predicted: the divergence that the profile's scores add up to.
        over: largest share by which a cap is exceeded; 0 or less is within all caps.
        proposed: not one of the maps that every search begins with.
        divergence_error: standard error of the divergence, of a map of which not all items were read.
    """

    base: str
    choice: Choice
    saving: float
    margin: float
    divergence: float
    predicted: float
    drop: float = 0.0
    ms: float = float("nan")
    over: float = 0.0
    proposed: bool = True
    divergence_error: float = 0.0


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


def from_params(problem: Problem, params: Mapping[str, Any]) -> tuple[str, Choice]:
    choice = tuple(
        options.index(params[group.name]) if group.name in params else 0
        for group, options in zip(problem.groups, problem.options, strict=True)
    )
    return params[BASE], choice


def params_of(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial, which one that has not begun does not have as its own yet."""
    return {**trial.system_attrs.get(FIXED, {}), **trial.params}


def is_born(problem: Problem, trial: optuna.trial.FrozenTrial) -> bool:
    """Whether its map is decided: a process that is killed can leave a trial with some of its parameters."""
    return space_of(problem).keys() <= params_of(trial).keys()


def christen(problem: Problem, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
    """Give a running trial the parameters that it was enqueued with; False if it has them. Optuna writes them one by one after
    it has taken the trial from the queue, and may be killed in between."""
    fixed = params_of(trial)
    missing = {name: kind for name, kind in space_of(problem).items() if name not in trial.params and name in fixed}
    for name, kind in missing.items():
        study._storage.set_trial_param(trial._trial_id, name, kind.to_internal_repr(fixed[name]), kind)
    return bool(missing)


def write(study: optuna.Study, trial_id: int, **attrs: Any) -> None:
    """User attributes of a running trial, of which there may be no trial object in this process.

    Raises:
        UpdateFinishedTrialError: it is finished.
    """
    for name, value in attrs.items():
        study._storage.set_trial_user_attr(trial_id, name, value)


def constrain(problem: Problem, study: optuna.Study, trial_id: int, margin: float, ms: float, size: float) -> None:
    """What must be 0 or less: the metric's margin, or how far the caps are exceeded."""
    value = problem.over(ms, size) if problem.capped else margin
    study._storage.set_trial_system_attr(trial_id, CONSTRAINTS, [float(value)])


def seen_of(problem: Problem, base: str, choice: Choice, attrs: Mapping[str, Any]) -> Seen:
    """From the attributes of a finished trial."""
    saving = problem.saving(attrs["ms"], attrs["bytes"])
    figures = (attrs["margin"], attrs["divergence"], attrs["predicted_divergence"], attrs["drop"], attrs["ms"])
    over = problem.over(attrs["ms"], attrs["bytes"])
    proposed, error = attrs.get("origin") != "enqueued", attrs.get("divergence_error", 0.0)
    return Seen(base, choice, saving, *figures, over, proposed, error)


def seen_trials(problem: Problem, study: optuna.Study) -> list[Seen]:
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return [seen_of(problem, *from_params(problem, trial.params), trial.user_attrs) for trial in complete]


def tried_choices(problem: Problem, study: optuna.Study) -> dict[str, list[Choice]]:
    """Base dtype → choices of all trials, failed, skipped and running ones too: none is proposed twice."""
    tried: dict[str, list[Choice]] = {base: [] for base in problem.base_dtypes}
    for trial in study.get_trials(deepcopy=False):
        if is_born(problem, trial):
            base, choice = from_params(problem, params_of(trial))
            tried[base].append(choice)
    return tried


def refined(study: optuna.Study) -> dict[str, dict[str, float]]:
    """Group → option → one-layer divergence, of all that were measured."""
    found: dict[str, dict[str, float]] = {}
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        for group, options in trial.user_attrs.get(REFINED, {}).items():
            found.setdefault(group, {}).update(options)
    return found


def as_refined(problem: Problem, study: optuna.Study) -> Problem:
    """The problem with the scores that were measured exactly since the profile was taken."""
    measured = refined(study)
    if not measured:
        return problem
    scores = tuple(
        np.array([measured.get(group.name, {}).get(name, score) for name, score in zip(options, s, strict=True)])
        for group, options, s in zip(problem.groups, problem.options, problem.scores, strict=True)
    )
    exact = {(place, name) for place, group in enumerate(problem.groups) for name in measured.get(group.name, {})}
    return replace(problem, scores=scores, exact=frozenset(exact))


def promise(problem: Problem, base: str, choice: Choice) -> float:
    """The saving that the prices add up to; measured end to end it comes out a little different."""
    return problem.saving(problem.total_ms(base, choice), problem.total_bytes(base, choice))


def held(problem: Problem, seen: Sequence[Seen], base: str) -> float:
    """The share of its promised saving that a quantized map keeps end to end: median in this base dtype, else in all."""
    return _kept({s: s.saving / promise(problem, s.base, s.choice) for s in seen if any(s.choice)}, base)


def slowdown(problem: Problem, seen: Sequence[Seen], base: str) -> float:
    """How many times its predicted latency a quantized map takes end to end: median in this base dtype, else in all."""
    return _kept({s: s.ms / problem.total_ms(s.base, s.choice) for s in seen if any(s.choice)}, base)


def _kept(ratios: Mapping[Seen, float], base: str) -> float:
    own = [ratio for seen, ratio in ratios.items() if seen.base == base] or list(ratios.values())
    return median(own) if own else 1.0


def base_divergence(seen: Sequence[Seen], base: str) -> float:
    """What casting the whole model to `base` adds: observed on the map without any quantized layer, else 0."""
    return next((s.divergence for s in seen if s.base == base and not any(s.choice)), 0.0)


def best_saving(seen: Sequence[Seen]) -> float:
    """Of the maps within the budget; 0 if there is none."""
    return max((s.saving for s in seen if s.margin <= 0), default=0.0)
