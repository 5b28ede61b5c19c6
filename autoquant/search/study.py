"""The search itself: an Optuna study on disk in which trials are enqueued, proposed, evaluated and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoquant.errors import AutoquantError
from autoquant.search.problem import FLOAT, Choice, Problem
from autoquant.search.sampler import Exhausted, SurrogateSampler, base_divergence, from_params, seen_trials, space_of, to_params
from autoquant.values import Candidate

STUDY = "autoquant"
STRATEGIES: dict[str, Callable[[Problem, int], optuna.samplers.BaseSampler]] = {
    "surrogate": lambda problem, seed: SurrogateSampler(problem, seed),
    "tpe": lambda problem, seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=4),
    "random": lambda problem, seed: optuna.samplers.RandomSampler(seed=seed),
}
"""Name → sampler. All start from the same enqueued maps."""

UNIFORM_LIMIT = 4
"""Uniform maps that are evaluated: those that no other uniform map beats in both saving and score, most saving first."""


@dataclass(frozen=True)
class Outcome:
    """What evaluating a map gave. `margin` ≤ 0 means that it is expected to be certified."""

    drop: float
    error: float
    margin: float
    divergence: float
    ms: float
    items: int


Evaluate = Callable[[str, dict[str, str]], Outcome]
"""(base dtype, layer → scheme) → outcome."""


def open_study(path: Path, problem: Problem, strategy: str, seed: int) -> optuna.Study:
    """The study in the journal file at `path`, created if it is not there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        study_name=STUDY,
        storage=JournalStorage(JournalFileBackend(str(path))),
        sampler=STRATEGIES[strategy](problem, seed),
        direction="maximize",
        load_if_exists=True,
    )


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

    A map whose evaluation raises is recorded as failed with its reason, and the search goes on. Ctrl-C propagates after
    the trial is recorded as failed; what was found so far is in the study.

    Returns:
        all candidates, and why the search ended.
    """
    start = time.perf_counter()
    abandoned = _take_up_abandoned(study)
    if not study.trials:
        for label, base, choice in starting_maps(problem):
            study.enqueue_trial(to_params(problem, base, choice), user_attrs={"label": label, "origin": "enqueued"})
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
    begin = time.perf_counter()
    try:
        outcome = evaluate(base, problem.layers(base, choice))
    except KeyboardInterrupt:
        trial.set_user_attr("reason", "interrupted")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise
    except (AutoquantError, RuntimeError, MemoryError) as error:
        trial.set_user_attr("reason", f"{type(error).__name__}: {error}")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    for name in ("drop", "error", "margin", "divergence", "ms", "items"):
        trial.set_user_attr(name, getattr(outcome, name))
    trial.set_user_attr("seconds", time.perf_counter() - begin)
    trial.set_constraint("accuracy", outcome.margin)
    study.tell(trial, problem.saving(outcome.ms, size))


def _take_up_abandoned(study: optuna.Study) -> int:
    """Trials that a killed run left unfinished are closed and queued again. Returns how many were closed so far."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            attrs = {k: v for k, v in trial.user_attrs.items() if k in ("label", "origin")}
            study.enqueue_trial(trial.params, user_attrs=attrs)
    return sum(1 for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.FAIL and "reason" not in t.user_attrs)


def _drop_unborn(study: optuna.Study) -> None:
    """Close the trial that Optuna created before the sampler said that nothing is left."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def candidates(problem: Problem, study: optuna.Study) -> list[Candidate]:
    """Every trial of the study as a value; trials that never began are left out."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        if not trial.state.is_finished() or (trial.state == optuna.trial.TrialState.FAIL and "reason" not in attrs):
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
            numbers = {k: attrs[k] for k in ("ms", "drop", "error", "margin", "divergence", "items", "seconds")}
            value = replace(value, saving=trial.value, **numbers)
        else:
            value = replace(value, state="failed", reason=attrs["reason"])
        found.append(value)
    return found


def ladder(found: Sequence[Candidate], rungs: int = 2) -> list[Candidate]:
    """At most `rungs` feasible quantized maps, safe → aggressive: the best saving last, and before it maps that give up
    some saving for a smaller drop. Fixed before the certification data is touched."""
    quantized = [c for c in found if c.feasible and any(s != c.base_dtype for s in c.layers.values())]
    front: list[Candidate] = []
    for candidate in sorted(quantized, key=lambda c: -c.saving):
        if not front or candidate.divergence < 0.7 * front[-1].divergence:
            front.append(candidate)
    return front[:rungs][::-1]
