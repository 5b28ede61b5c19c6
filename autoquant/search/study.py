"""The search itself: an Optuna study on disk in which trials are enqueued, proposed, evaluated and recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoquant.search.problem import FLOAT, Choice, Problem
from autoquant.search.sampler import (
    Exhausted,
    SurrogateSampler,
    base_divergence,
    from_params,
    params_of,
    seen_trials,
    space_of,
    to_params,
)
from autoquant.values import Candidate

STUDY = "autoquant"
STRATEGIES: dict[str, Callable[[Problem, int], optuna.samplers.BaseSampler]] = {
    "surrogate": lambda problem, seed: SurrogateSampler(problem, seed),
    "tpe": lambda problem, seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=4),
    "random": lambda problem, seed: optuna.samplers.RandomSampler(seed=seed),
}
"""Name → sampler. All start from the same enqueued maps."""

FIGURES = ("drop", "error", "margin", "divergence", "ms", "noise", "items")
"""What is kept of an `Outcome` as user attributes of its trial."""

REPEATS = "repeats"
"""User attribute of a trial whose map an earlier one had: the number of that."""

KILLED = "killed"
"""User attribute of a trial whose map was being evaluated when an earlier run was killed."""

UNIFORM_LIMIT = 4
"""Uniform maps that are evaluated: those that no other uniform map beats in saving and score, most saving first."""


@dataclass(frozen=True)
class Outcome:
    """What evaluating a map gave. `margin` ≤ 0: it is expected to be certified; `noise`: of `ms`, as a share of it."""

    drop: float
    error: float
    margin: float
    divergence: float
    ms: float
    items: int
    noise: float = 0.0


Evaluate = Callable[[str, dict[str, str]], Outcome]
"""(base dtype, layer → scheme) → outcome."""


def open_study(path: Path, problem: Problem, strategy: str, seed: int) -> optuna.Study:
    """The study in the journal file at `path`, created if it is not there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _drop_half_line(path)
    study = optuna.create_study(
        study_name=STUDY,
        storage=JournalStorage(JournalFileBackend(str(path))),
        direction="maximize",
        load_if_exists=True,
    )
    # A resumed run draws on, it does not draw the same again.
    study.sampler = STRATEGIES[strategy](problem, seed + len(study.get_trials(deepcopy=False)))
    return study


def _drop_half_line(path: Path) -> None:
    """A run that is killed while it writes leaves half a line at the journal's end, over which Optuna would stumble."""
    if not path.is_file() or not (size := path.stat().st_size):
        return
    with open(path, "rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        if whole < size:
            file.truncate(whole)


def starting_maps(problem: Problem) -> list[tuple[str, str, Choice]]:
    """(label, base dtype, choice) of the maps that every search begins with: no quantization, then uniform schemes."""
    maps = [(base, base, tuple(0 for _ in problem.groups)) for base in problem.base_dtypes]
    uniform = []
    for base in problem.base_dtypes:
        for scheme in sorted({name for options in problem.options for name in options} - {FLOAT}):
            choice = problem.uniform(scheme)
            gain = problem.saving(problem.total_ms(base, choice), problem.total_bytes(base, choice))
            uniform.append((gain, problem.score(choice), f"uniform {scheme} in {base}", base, choice))
    uniform.sort(key=lambda item: -item[0])
    front: list[tuple[float, float, str, str, Choice]] = []
    for item in uniform:
        if all(item[1] < other[1] for other in front):
            front.append(item)
    return maps + [(label, base, choice) for *_, label, base, choice in front[:UNIFORM_LIMIT]]


def run_search(
    problem: Problem,
    evaluate: Evaluate,
    study: optuna.Study,
    *,
    trials: int,
    max_seconds: float = float("inf"),
    on_trial: Callable[[list[Candidate]], None] = lambda candidates: None,
) -> tuple[list[Candidate], str]:
    """Evaluate up to `trials` maps in all (those of an earlier, killed run counted in).

    A map whose evaluation raises, or gives NaN or infinity, is recorded as failed with its reason, and the search goes
    on. Ctrl-C propagates; what was found so far is in the study, and the map that it interrupted comes again on resume.

    Returns:
        all candidates, and why the search ended.
    """
    start = time.perf_counter()
    abandoned = _take_up_abandoned(problem, study)
    for label, base, choice in starting_maps(problem):
        attrs = {"label": label, "origin": "enqueued"}
        study.enqueue_trial(to_params(problem, base, choice), user_attrs=attrs, skip_if_exists=True)
    reason = f"all {trials} trials done"
    while True:
        finished = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
        if len(finished) - abandoned >= trials:
            break
        if time.perf_counter() - start > max_seconds:
            reason = "time is up"
            break
        try:
            trial = study.ask(space_of(problem))
        except Exhausted:
            reason = "no map that was not tried promises more"
            _drop_unborn(study)
            break
        _evaluate_trial(problem, evaluate, study, trial)
        if REPEATS not in trial.user_attrs:
            on_trial(candidates(problem, study))
    return candidates(problem, study), reason


def _evaluate_trial(problem: Problem, evaluate: Evaluate, study: optuna.Study, trial: optuna.Trial) -> None:
    base, choice = from_params(problem, trial.params)
    trial.set_user_attr("origin", trial.user_attrs.get("origin", "proposed"))
    trial.set_user_attr("label", trial.user_attrs.get("label", f"map {trial.number}"))
    size = problem.total_bytes(base, choice)
    trial.set_user_attr("bytes", size)
    predicted = problem.score(choice) + base_divergence(seen_trials(problem, study), base)
    trial.set_user_attr("predicted_divergence", predicted)
    if (
        before := _same_map(study, trial)
    ) is not None:  # a sampler that draws may draw a map again: nothing new to learn
        trial.set_user_attr(REPEATS, before.number)
        for name in (*FIGURES, "seconds"):
            trial.set_user_attr(name, before.user_attrs.get(name))
        trial.set_constraint("accuracy", before.user_attrs["margin"])
        study.tell(trial, before.value)
        return
    begin = time.perf_counter()
    try:
        outcome = evaluate(base, problem.layers(base, choice))
    except KeyboardInterrupt:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        _enqueue_again(problem, study, study.get_trials(deepcopy=False)[trial.number])
        raise
    except Exception as error:  # whatever a model does under a scheme: one map less, not the end of the search
        trial.set_user_attr("reason", f"{type(error).__name__}: {error}")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    figures = {name: getattr(outcome, name) for name in FIGURES}
    if bad := [name for name, value in figures.items() if not math.isfinite(value)]:
        trial.set_user_attr("reason", f"NaN or infinity: {', '.join(bad)}")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    for name, value in figures.items():
        trial.set_user_attr(name, value)
    trial.set_user_attr("seconds", time.perf_counter() - begin)
    trial.set_constraint("accuracy", outcome.margin)
    study.tell(trial, problem.saving(outcome.ms, size))


def _same_map(study: optuna.Study, trial: optuna.Trial) -> optuna.trial.FrozenTrial | None:
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return next((t for t in complete if t.params == trial.params), None)


def _take_up_abandoned(problem: Problem, study: optuna.Study) -> int:
    """Close the trials that a killed run left unfinished, and queue their maps again.

    A map that was being evaluated when a run was killed for the second time is recorded as failed instead.

    Returns:
        how many trials were closed without a result so far.
    """
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        begun = "bytes" in trial.user_attrs
        if begun and trial.user_attrs.get(KILLED):
            reason = "the process was killed twice while it evaluated this map (out of memory?)"
            attrs = {**trial.user_attrs, "reason": reason}
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.FAIL,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs=attrs,
                )
            )
        else:
            _enqueue_again(problem, study, trial, **({KILLED: True} if begun else {}))
    failed = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.FAIL,))
    return sum("reason" not in trial.user_attrs for trial in failed)


def _enqueue_again(problem: Problem, study: optuna.Study, trial: optuna.trial.FrozenTrial, **attrs: bool) -> None:
    """Queue the trial's map once more, under its label; nothing if it died before its map was decided."""
    params = params_of(trial)
    if space_of(problem).keys() <= params.keys():
        kept = {k: v for k, v in trial.user_attrs.items() if k in ("label", "origin", KILLED)}
        study.enqueue_trial(params, user_attrs={**kept, **attrs})


def _drop_unborn(study: optuna.Study) -> None:
    """Close the trial that Optuna created before the sampler said that nothing is left."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def candidates(problem: Problem, study: optuna.Study) -> list[Candidate]:
    """Every map of the study as a value; trials that never began, or repeat another, are left out."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        if (
            REPEATS in attrs
            or not trial.state.is_finished()
            or (trial.state == optuna.trial.TrialState.FAIL and "reason" not in attrs)
        ):
            continue
        base, choice = from_params(problem, trial.params)
        value = Candidate(
            number=trial.number,
            label=attrs["label"],
            origin=attrs["origin"],
            base_dtype=base,
            layers=problem.layers(base, choice),
            bytes=int(attrs["bytes"]),
            predicted_divergence=attrs["predicted_divergence"],
        )
        if trial.state == optuna.trial.TrialState.COMPLETE:
            numbers = {k: attrs[k] for k in (*FIGURES, "seconds") if k in attrs}
            value = replace(value, saving=trial.value or 0.0, **numbers)
        else:
            value = replace(value, state="failed", reason=attrs["reason"])
        found.append(value)
    return found
