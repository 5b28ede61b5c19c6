"""One map judged: evaluated by whoever has been given it, and recorded in its trial."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from autoquant.errors import StorageError
from autoquant.search.ledger import WORKER, constrain, from_params, seen_of, write
from autoquant.search.problem import Problem
from autoquant.search.refine import Measure, refine_if_off
from autoquant.search.storages import patiently

FIGURES = ("drop", "error", "margin", "divergence", "divergence_error", "ms", "noise", "items")
"""What is kept of an `Outcome` as user attributes of its trial."""
BEGUN = "begun"
"""User attribute of a trial: the worker that has begun to evaluate its map."""


@dataclass(frozen=True)
class Outcome:
    """What evaluating a map gave. `margin` ≤ 0: it is expected to be certified; `noise`: of `ms`, as a share of it;
    `divergence_error`: how far the divergence of the whole split may be from that of the items read, a standard error."""

    drop: float
    error: float
    margin: float
    divergence: float
    ms: float
    items: int
    noise: float = 0.0
    divergence_error: float = 0.0


Evaluate = Callable[[str, dict[str, str]], Outcome]
"""(base dtype, layer → scheme) → outcome."""


def judge_trial(
    problem: Problem, study: optuna.Study, trial: FrozenTrial, me: str, evaluate: Evaluate, measure: Measure | None,
    say: Callable[[str], None] = lambda text: None,
) -> bool:  # fmt: skip
    """Evaluate the trial's map and tell the outcome, or why there is none.

    Returns:
        whether it was told: not if the trial has been given to another worker meanwhile, or was finished by one.
    """
    base, choice = from_params(problem, trial.params)
    attrs, value = dict(trial.user_attrs), None
    begin = time.perf_counter()
    try:
        if not patiently(lambda: _begin(study, trial, me), say):
            return False
        found = _figures(evaluate(base, problem.layers(base, choice)))
        if "reason" not in found:
            attrs |= found
            saving = problem.saving(attrs["ms"], attrs["bytes"])
            value = problem.value(saving, attrs["drop"])
            found |= {"seconds": time.perf_counter() - begin, "saving": saving}
            if measure is not None:
                last = seen_of(problem, base, choice, attrs)
                found |= patiently(lambda: refine_if_off(problem, study, last, measure), say)
    except KeyboardInterrupt:
        give_back(study, trial, me)
        raise
    except StorageError:
        raise
    except Exception as error:  # whatever a model does under a scheme: one map less, not the end of the search
        found, value = {"reason": f"{type(error).__name__}: {error}"}, None
    return patiently(lambda: _tell(problem, study, trial, me, found, value), say)


def give_back(study: optuna.Study, trial: FrozenTrial, me: str) -> None:
    """Let another worker have the trial; that it was begun is not held against its map."""
    if is_mine(study, trial, me):
        write(study, trial._trial_id, **{BEGUN: "", WORKER: ""})


def is_mine(study: optuna.Study, trial: FrozenTrial, me: str) -> bool:
    now = study._storage.get_trial(trial._trial_id)
    return now.state == TrialState.RUNNING and now.user_attrs.get(WORKER) == me


def _begin(study: optuna.Study, trial: FrozenTrial, me: str) -> bool:
    if not is_mine(study, trial, me):
        return False
    write(study, trial._trial_id, **{BEGUN: me})
    return True


def _figures(outcome: Outcome) -> dict[str, Any]:
    found = {name: getattr(outcome, name) for name in FIGURES}
    bad = [name for name, value in found.items() if not math.isfinite(value)]
    return {"reason": f"NaN or infinity: {', '.join(bad)}"} if bad else found


def _tell(
    problem: Problem, study: optuna.Study, trial: FrozenTrial, me: str, attrs: dict[str, Any], value: float | None
) -> bool:
    """May be done twice: what was told already, and got no answer, is not told again."""
    if not is_mine(study, trial, me):
        now = study._storage.get_trial(trial._trial_id)
        return now.state.is_finished() and now.user_attrs.get(WORKER) == me
    try:
        write(study, trial._trial_id, **attrs)
        if value is not None:  # Optuna reads constraints before the state, so they are set first
            size = trial.user_attrs["bytes"]
            constrain(problem, study, trial._trial_id, attrs["margin"], attrs["ms"], size)
        return tell(study, trial.number, value)
    except UpdateFinishedTrialError:
        return False


def tell(study: optuna.Study, number: int, value: float | None, state: TrialState | None = None) -> bool:
    """Finish a trial: complete with a value, else failed (or `state`); False where another process was first."""
    try:
        study.tell(number, value, state=state or (TrialState.FAIL if value is None else TrialState.COMPLETE))
    except (UpdateFinishedTrialError, ValueError):
        return False
    return True
