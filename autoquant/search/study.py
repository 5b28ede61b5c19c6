"""The search itself: an Optuna study in which maps are proposed, evaluated and recorded, by one process or many."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from autoquant.errors import AutoquantError, StaleError
from autoquant.search.crew import OWN, Alone, Crew
from autoquant.search.judging import FIGURES, Evaluate, judge_trial
from autoquant.search.lead import REPEATS, Lead, Places, is_counted
from autoquant.search.ledger import WORKER, from_params, is_born
from autoquant.search.problem import Problem
from autoquant.search.refine import Measure, noticed
from autoquant.search.roll import LEAD, Roll
from autoquant.search.starts import Start, starting_maps
from autoquant.search.storages import open_storage, patiently
from autoquant.search.strategies import STRATEGIES
from autoquant.values import Candidate

STUDY_NAME = "autoquant"
MADE_FROM = "fingerprint"
"""User attribute of a study: of the search space that its maps are from."""
POLL, RARELY = 0.05, 1.0
"""Seconds between two looks at the study, and where a look takes long."""
SHARE = 0.1
"""Of a processor that looking may take."""
LONELY = 600.0
"""Seconds that a worker waits for a search's main process."""


def open_study(
    where: Path | str, problem: Problem, strategy: str, seed: int, name: str = STUDY_NAME, made_from: str = ""
) -> optuna.Study:
    """The study in a journal file or behind a storage's URL, created if it is not there.

    Raises:
        StaleError: it belongs to another search space.
        StorageError: the storage does not answer.
    """

    def make() -> optuna.Study:
        storage = open_storage(where)
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
        _check(study, made_from, where)
        if study.user_attrs.get(MADE_FROM) is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(["less drop" if problem.capped else "saving"])
            study.set_user_attr(MADE_FROM, made_from)
        return study

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = patiently(make)
    # A resumed run draws on, it does not draw the same again.
    study.sampler = STRATEGIES[strategy].make(problem, seed + len(study.get_trials(deepcopy=False)))
    return study


def join_study(where: Path | str, name: str = STUDY_NAME, made_from: str | None = None) -> optuna.Study:
    """The study of a search that another process leads.

    Args:
        made_from: the fingerprint of the search space that it should have; None: any.

    Raises:
        AutoquantError: there is none yet; StaleError: it belongs to another search space.
    """

    def load() -> optuna.Study:
        try:
            if isinstance(where, Path) and not where.is_file():
                raise KeyError(name)
            study = optuna.load_study(study_name=name, storage=open_storage(where))
        except KeyError as error:
            raise AutoquantError(
                f"No search has begun in this storage under the name '{name}'. Start the main process first, and wait "
                "until it says 'search'."
            ) from error
        _check(study, made_from, where)
        return study

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return patiently(load)


def describe_study(study: optuna.Study, text: str) -> None:
    """Say in optuna-dashboard what the study is, where that is installed here."""
    try:
        from optuna_dashboard import save_note
    except ImportError:
        return
    patiently(lambda: save_note(study, text))


def _check(study: optuna.Study, made_from: str | None, where: Path | str) -> None:
    if made_from is not None and study.user_attrs.get(MADE_FROM, made_from) != made_from:
        place = f"The study '{study.study_name}'" if isinstance(where, str) else where
        raise StaleError(f"{place} belongs to another search space. Choose another --out folder.")


def run_search(
    problem: Problem,
    evaluate: Evaluate | None,
    study: optuna.Study,
    *,
    trials: int,
    starts: Sequence[Start] | None = None,
    measure: Measure | None = None,
    say: Callable[[str], None] = lambda message: None,
    max_seconds: float = float("inf"),
    on_trial: Callable[[Candidate, list[Candidate]], None] = lambda new, found: None,
    crew: Crew | None = None,
    fallback: bool = False,
) -> tuple[list[Candidate], str]:
    """Evaluate up to `trials` maps in all (those of an earlier, killed run counted in).

    Args:
        starts: (label, base dtype, choice) of the maps to begin with; none starts cold; None stands for `starting_maps`.
        measure: measures divergences exactly where the surrogate is off (see `refine`); `say` is told of it.
        on_trial: called with each new candidate, and all so far.
        fallback: make the last trial one of a map to fall back on, should the best one not pass certification.
        crew: the processes that evaluate; None: this one, with `evaluate` and `measure`. Others may join either.

    A map whose evaluation raises, or gives NaN or infinity, is recorded as failed with its reason, and the search goes
    on. Ctrl-C propagates; what was found so far is in the study, and the map that it interrupted comes again on resume.

    Returns:
        all candidates, and why the search ended.
    """

    def finished(trial: FrozenTrial) -> None:
        if (text := noticed(trial)) is not None:
            say(text)
        found = candidates(problem, study)
        on_trial(next(c for c in found if c.number == trial.number), found)

    lead = Lead(problem, study, trials, max_seconds, finished, fallback)
    if crew is None:
        assert evaluate is not None
        judge = evaluate
        crew = Alone(lambda me: work_once(problem, study, me, judge, measure, say))
    patiently(lambda: lead.begin(starting_maps(problem) if starts is None else starts), say)
    with Roll(study, LEAD) as roll, crew:

        def gone(name: str) -> bool:
            return not crew.has(name) if name.startswith(OWN) else roll.silent(name)

        def places() -> Places:
            joined = dict.fromkeys(
                (n for n in roll.present() if n != LEAD and not n.startswith(OWN)), crew.room_of_others
            )
            return Places(dict.fromkeys(crew.ready(roll), 1) | joined, gone)

        try:
            while not lead.reason:
                begin = time.process_time()
                if not patiently(lambda: lead.step(places()), say):
                    crew.wait(say, bool(places().room), _pause(begin))
        except KeyboardInterrupt:
            crew.stop()
            patiently(lambda: lead.give_back(lambda name: name.startswith(OWN)), say)
            raise
        patiently(lambda: roll.say(ended=lead.reason), say)
    return patiently(lambda: candidates(problem, study), say), lead.reason


def work_once(
    problem: Problem, study: optuna.Study, me: str, evaluate: Evaluate, measure: Measure | None,
    say: Callable[[str], None] = lambda message: None,
) -> bool | None:  # fmt: skip
    """Evaluate the map that was given to `me`: whether its outcome was told; None if there is no map."""

    def given() -> FrozenTrial | None:
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return next((t for t in running if t.user_attrs.get(WORKER) == me and is_born(problem, t)), None)

    trial = patiently(given, say)
    return None if trial is None else judge_trial(problem, study, trial, me, evaluate, measure, say)


def work(
    problem: Problem, study: optuna.Study, me: str, evaluate: Evaluate, measure: Measure | None = None, *,
    say: Callable[[str], None] = lambda message: None, on_map: Callable[[int], None] = lambda count: None,
    lonely: float = LONELY,
) -> tuple[int, str]:  # fmt: skip
    """Evaluate the maps that the search's main process gives to `me`, until that has ended.

    Returns:
        how many were told, and why it was left.

    Raises:
        AutoquantError: there is no main process.
    """
    told, alone = 0, 0.0
    with Roll(study, me) as roll:
        while True:
            begin = time.process_time()
            if (done := work_once(problem, study, me, evaluate, measure, say)) is not None:
                told, alone = told + done, 0.0
                on_map(told)
                continue
            if ended := roll.heard(LEAD).get("ended"):
                return told, ended
            pause = _pause(begin)
            before, alone = alone, alone + pause if roll.silent(LEAD) or not roll.heard(LEAD) else 0.0
            if alone and not before:
                say(f"the search's main process is silent; waiting for it for {lonely / 60:.0f} minutes")
            if alone > lonely:
                raise AutoquantError(
                    "The search's main process has not been heard of for a long time. Go on with it: autoquant search "
                    "--resume RUN; then start this worker again."
                )
            time.sleep(pause)


def _pause(begin: float) -> float:
    """Seconds until the next look, where this process has been busy with the last one since `begin`."""
    return min(max(POLL, (time.process_time() - begin) / SHARE), RARELY)


def candidates(problem: Problem, study: optuna.Study) -> list[Candidate]:
    """Every map of the study as a value; trials that never began, or repeat another, are left out."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        if REPEATS in attrs or not (trial.state == TrialState.PRUNED or is_counted(trial)):
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
        if trial.state == TrialState.COMPLETE:
            numbers = {k: attrs[k] for k in (*FIGURES, "seconds") if k in attrs}
            saving = problem.saving(attrs["ms"], attrs["bytes"])
            within = problem.over(attrs["ms"], attrs["bytes"]) <= 0
            value = replace(value, saving=saving, within_cap=within, **numbers)
        else:
            skipped = trial.state == TrialState.PRUNED
            value = replace(value, state="skipped" if skipped else "failed", reason=attrs["reason"])
        found.append(value)
    return found
