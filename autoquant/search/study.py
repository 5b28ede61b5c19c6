"""The search itself: an Optuna study on disk in which trials are enqueued, proposed, evaluated and recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoquant.errors import UsageError
from autoquant.search.ledger import (
    Exhausted,
    Seen,
    base_divergence,
    best_saving,
    from_params,
    held,
    params_of,
    promise,
    seen_trials,
    slowdown,
    space_of,
    to_params,
)
from autoquant.search.problem import FLOAT, Choice, Problem
from autoquant.search.refine import Measure, refine_if_off
from autoquant.search.strategies import STRATEGIES
from autoquant.search.surrogate import solve
from autoquant.values import Candidate

STUDY = "autoquant"

FIGURES = ("drop", "error", "margin", "divergence", "ms", "noise", "items")
"""What is kept of an `Outcome` as user attributes of its trial."""

REPEATS = "repeats"
"""User attribute of a trial whose map an earlier one had: the number of that."""

KILLED = "killed"
"""User attribute of a trial whose map was being evaluated when an earlier run was killed."""

SKIPS = 100
"""Maps in a row that cannot beat the best one by their price, after which a search ends."""

FRONT_SHARES = (0.5, 0.25, 0.1, 0.03)
"""Of the divergence of the map that saves most: the maps of the profile's front that a strategy is warm-started with."""

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
    study.sampler = STRATEGIES[strategy].make(problem, seed + len(study.get_trials(deepcopy=False)))
    return study


def check_size(strategy: str, base_dtypes: Sequence[str], options: Sequence[Sequence[str]]) -> None:
    """Raises UsageError when a strategy cannot serve a search space of this size."""
    maps, limit = len(base_dtypes) * math.prod(map(len, options)), STRATEGIES[strategy].limit
    if limit is not None and maps > limit:
        count = f"{maps:,}" if maps < 10**9 else f"10^{len(str(maps)) - 1}"
        raise UsageError(
            f"--strategy {strategy} tries every map; this search space has {count} of {len(options)} groups, and {limit:,} "
            "are the most. Use --strategy surrogate, or a --space of your own that lets few layers choose between few "
            "schemes."
        )


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


def warm_starts(problem: Problem, strategy: str) -> list[tuple[str, str, Choice]]:
    """What a strategy's search begins with: `starting_maps`, and maps of the profile's front where it is not guided."""
    maps = starting_maps(problem)
    if STRATEGIES[strategy].guided:
        return maps
    base = max(problem.base_dtypes, key=lambda base: promise(problem, base, tuple(0 for _ in problem.groups)))
    most = solve(problem, base, math.inf)
    assert most is not None, "without an allowance there is a solution"
    for share in FRONT_SHARES:
        choice = solve(problem, base, share * problem.score(most))
        if choice is not None and (base, choice) not in [(b, c) for _, b, c in maps]:
            maps.append((f"{share:.0%} of the largest divergence in {base}", base, choice))
    return maps


def run_search(
    problem: Problem,
    evaluate: Evaluate,
    study: optuna.Study,
    *,
    trials: int,
    starts: Sequence[tuple[str, str, Choice]] | None = None,
    measure: Measure | None = None,
    say: Callable[[str], None] = lambda message: None,
    max_seconds: float = float("inf"),
    on_trial: Callable[[list[Candidate]], None] = lambda candidates: None,
) -> tuple[list[Candidate], str]:
    """Evaluate up to `trials` maps in all (those of an earlier, killed run counted in).

    Args:
        starts: (label, base dtype, choice) of the maps to begin with; none starts cold; None stands for `starting_maps`.
        measure: measures divergences exactly where the surrogate is off (see `refine`); `say` is told of it.

    A map whose evaluation raises, or gives NaN or infinity, is recorded as failed with its reason, and the search goes
    on. Ctrl-C propagates; what was found so far is in the study, and the map that it interrupted comes again on resume.

    Returns:
        all candidates, and why the search ended.
    """
    start = time.perf_counter()
    abandoned = _take_up_abandoned(problem, study)
    for label, base, choice in starting_maps(problem) if starts is None else starts:
        attrs = {"label": label, "origin": "enqueued"}
        study.enqueue_trial(to_params(problem, base, choice), user_attrs=attrs, skip_if_exists=True)
    reason = f"all {trials} trials done"
    while True:
        finished = [t.state for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
        skipped = finished.count(optuna.trial.TrialState.PRUNED)  # costs nothing, so it is none of the trials
        if len(finished) - skipped - abandoned >= trials:
            break
        if finished[-SKIPS:].count(optuna.trial.TrialState.PRUNED) == SKIPS:
            reason = f"{SKIPS} maps in a row could not beat the best by their price"
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
        state = _evaluate_trial(problem, evaluate, study, trial)
        if state == optuna.trial.TrialState.COMPLETE and REPEATS not in trial.user_attrs and measure is not None:
            found = refine_if_off(problem, study, measure)
            if found is not None:
                say(found)
        if state != optuna.trial.TrialState.PRUNED and REPEATS not in trial.user_attrs:
            on_trial(candidates(problem, study))
    return candidates(problem, study), reason


def _evaluate_trial(
    problem: Problem, evaluate: Evaluate, study: optuna.Study, trial: optuna.Trial
) -> optuna.trial.TrialState:
    base, choice = from_params(problem, trial.params)
    trial.set_user_attr("origin", trial.user_attrs.get("origin", "proposed"))
    trial.set_user_attr("label", trial.user_attrs.get("label", f"map {trial.number}"))
    size = problem.total_bytes(base, choice)
    trial.set_user_attr("bytes", size)
    seen = seen_trials(problem, study)
    predicted = problem.score(choice) + base_divergence(seen, base)
    trial.set_user_attr("predicted_divergence", predicted)
    if (
        before := _same_map(study, trial)
    ) is not None:  # a sampler that draws may draw a map again: nothing new to learn
        trial.set_user_attr(REPEATS, before.number)
        for name in (*FIGURES, "seconds"):
            trial.set_user_attr(name, before.user_attrs.get(name))
        _constrain(problem, trial, before.user_attrs["margin"], before.user_attrs["ms"], size)
        study.tell(trial, before.value)
        return optuna.trial.TrialState.COMPLETE
    if trial.user_attrs["origin"] != "enqueued" and (reason := _too_dear(problem, seen, base, choice)) is not None:
        trial.set_user_attr("reason", reason)
        # Nothing is known of its accuracy. Optuna reads constraints before the state, so they are set first.
        _constrain(problem, trial, 0.0, slowdown(problem, seen, base) * problem.total_ms(base, choice), size)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return optuna.trial.TrialState.PRUNED
    begin = time.perf_counter()
    try:
        outcome = evaluate(base, problem.layers(base, choice))
    except KeyboardInterrupt:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        _enqueue_again(problem, study, study.get_trials(deepcopy=False)[trial.number])
        raise
    except Exception as error:  # whatever a model does under a scheme: one map less, not the end of the search
        return _fail(study, trial, f"{type(error).__name__}: {error}")
    figures = {name: getattr(outcome, name) for name in FIGURES}
    if bad := [name for name, value in figures.items() if not math.isfinite(value)]:
        return _fail(study, trial, f"NaN or infinity: {', '.join(bad)}")
    for name, value in figures.items():
        trial.set_user_attr(name, value)
    trial.set_user_attr("seconds", time.perf_counter() - begin)
    _constrain(problem, trial, outcome.margin, outcome.ms, size)
    study.tell(trial, problem.value(problem.saving(outcome.ms, size), outcome.drop))
    return optuna.trial.TrialState.COMPLETE


def _fail(study: optuna.Study, trial: optuna.Trial, reason: str) -> optuna.trial.TrialState:
    trial.set_user_attr("reason", reason)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return optuna.trial.TrialState.FAIL


def _constrain(problem: Problem, trial: optuna.Trial, margin: float, ms: float, size: float) -> None:
    """What must be 0 or less: the metric's margin, or how far the caps are exceeded."""
    if problem.capped:
        trial.set_constraint("cap", problem.over(ms, size))
    else:
        trial.set_constraint("accuracy", margin)


def _too_dear(problem: Problem, seen: Sequence[Seen], base: str, choice: Choice) -> str | None:
    """Why a proposed map is not worth an evaluation, by its price alone; None if it is.

    The maps that every search begins with are evaluated all the same: certification needs safer maps than the best one.
    """
    if problem.capped:
        over = problem.over(
            slowdown(problem, seen, base) * problem.total_ms(base, choice), problem.total_bytes(base, choice)
        )
        return None if over <= 0 else f"{over:.1%} over the cap by its price"
    promised, best = held(problem, seen, base) * promise(problem, base, choice), best_saving(seen)
    return None if promised > best else f"saves {promised:.3f}× by its price; the best so far saves {best:.3f}×"


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
            saving = problem.saving(attrs["ms"], attrs["bytes"])
            within = problem.over(attrs["ms"], attrs["bytes"]) <= 0
            value = replace(value, saving=saving, within_cap=within, **numbers)
        else:
            skipped = trial.state == optuna.trial.TrialState.PRUNED
            value = replace(value, state="skipped" if skipped else "failed", reason=attrs["reason"])
        found.append(value)
    return found
