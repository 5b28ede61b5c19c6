"""Who proposes and decides in a search: one process, however many evaluate maps.

Everything that must not happen twice is done here and nowhere else, so that no two processes can disagree: maps are proposed,
each is given to one worker, those of workers that died are given to others, and the end is declared. What has been done
stands in the study; a step begins by reading it, and may be cut off anywhere.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from autoquant.search.fallback import FALLBACK, fall_back
from autoquant.search.judging import BEGUN, FIGURES, tell
from autoquant.search.ledger import (
    WORKER,
    Exhausted,
    Seen,
    as_refined,
    base_divergence,
    best_saving,
    christen,
    constrain,
    from_params,
    held,
    is_born,
    promise,
    seen_trials,
    slowdown,
    space_of,
    to_params,
    tried_choices,
    write,
)
from autoquant.search.problem import Choice, Problem
from autoquant.search.starts import Start

REPEATS = "repeats"
"""User attribute of a trial whose map an earlier one had: the number of that."""
KILLED = "killed"
"""User attribute of a trial: how many workers died while they evaluated its map."""
DEATHS = 2
"""Workers that a map may cost."""
SKIPS = 100
"""Maps in a row that cannot beat the best one by their price, after which a search ends."""


@dataclass(frozen=True)
class Places:
    """How many maps each worker may hold: what it evaluates, and what it goes on with. `gone` holds for those that died."""

    room: dict[str, int]
    gone: Callable[[str], bool]


@dataclass
class Lead:
    """Leads one search.

    Attributes:
        trials, max_seconds: where it ends; trials of earlier, killed runs are counted in.
        fallback: the last trial is of a map to fall back on (see `fall_back`).
        on_finish: called with each trial that is finished from now on, but for maps that were skipped or are repeated.
        reason: why the search ended; empty while it goes on.
    """

    problem: Problem
    study: optuna.Study
    trials: int
    max_seconds: float = math.inf
    on_finish: Callable[[FrozenTrial], None] = lambda trial: None
    fallback: bool = False
    reason: str = ""
    _known: set[int] = field(default_factory=set)
    _asked_in_vain: int = -1
    _begin: float = field(default_factory=time.monotonic)

    def begin(self, starts: Sequence[Start]) -> None:
        """Queue the maps that a search begins with. May be done twice."""
        self._known = {t.number for t in self.study.get_trials(deepcopy=False) if t.state.is_finished()}
        for label, base, choice in starts:
            attrs = {"label": label, "origin": "enqueued"}
            self.study.enqueue_trial(to_params(self.problem, base, choice), user_attrs=attrs, skip_if_exists=True)

    def step(self, places: Places) -> bool:
        """Do what there is to do by now; False if there was nothing. May be done twice."""
        trials = self.study.get_trials(deepcopy=False)
        if any([self._put_right(t, places) for t in trials if t.state == TrialState.RUNNING]):
            return True
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._known:
                self._known.add(trial.number)
                if trial.state != TrialState.PRUNED and REPEATS not in trial.user_attrs and is_counted(trial):
                    self.on_finish(trial)
        running = [t for t in trials if t.state == TrialState.RUNNING]
        given = Counter(t.user_attrs[WORKER] for t in running if t.user_attrs.get(WORKER))
        free = [t for t in running if not t.user_attrs.get(WORKER)]
        finished = [t for t in trials if t.state.is_finished()]
        why = self._stop(finished, given.total())
        if why is not None:
            self.reason = "" if given else why
            return bool(self.reason)
        worker = min((w for w, room in places.room.items() if given[w] < room), key=lambda w: given[w], default=None)
        if worker is None:
            return False
        taken = {frozenset(t.params.items()) for t in running if t.user_attrs.get(WORKER)}
        for trial in free:
            if frozenset(trial.params.items()) not in taken:
                self._give(trial, worker)
                return True
        if sum(map(is_counted, finished)) + given.total() == self.trials - 1 and self._fall_back(trials):
            return True
        # Maps that are being evaluated were proposed once more: what comes out is theirs, too. One more may be drawn.
        if len(free) > len(places.room) or len(finished) == self._asked_in_vain:
            return False
        try:
            self.study.ask(space_of(self.problem))
        except Exhausted:
            self._close_unborn()
            self._asked_in_vain = len(finished) + 1  # of those that are unborn
            if not given and not self._fall_back(trials):
                self.reason = "no map that was not tried promises more"
        return True

    def give_back(self, gone: Callable[[str], bool]) -> None:
        """Take the maps of workers that were told to stop."""
        for trial in self._running():
            if gone(trial.user_attrs.get(WORKER, "")):
                write(self.study, trial._trial_id, **{BEGUN: "", WORKER: ""})

    def _fall_back(self, trials: Sequence[FrozenTrial]) -> bool:
        """Queue the map to fall back on; False if that was done before, or there is none."""
        if not self.fallback or any(
            t.state == TrialState.WAITING or t.user_attrs.get("origin") == FALLBACK for t in trials
        ):
            return False
        problem = as_refined(self.problem, self.study)
        found = fall_back(problem, seen_trials(problem, self.study), tried_choices(problem, self.study))
        if found is None:
            return False
        attrs = {"label": "safer map", "origin": FALLBACK}
        self.study.enqueue_trial(to_params(problem, *found), user_attrs=attrs, skip_if_exists=True)
        self._asked_in_vain = -1
        return True

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _stop(self, finished: Sequence[FrozenTrial], given: int) -> str | None:
        """Why no further map is to be given out."""
        if sum(map(is_counted, finished)) + given >= self.trials:
            return f"all {self.trials} trials done"
        last = [t.state for t in finished if t.state != TrialState.FAIL or is_counted(t)][-SKIPS:]
        if last.count(TrialState.PRUNED) == SKIPS:
            return f"{SKIPS} maps in a row could not beat the best by their price"
        return "time is up" if time.monotonic() - self._begin > self.max_seconds else None

    def _close_unborn(self) -> None:
        for trial in self._running():
            if not is_born(self.problem, trial):
                tell(self.study, trial.number, None)

    def _put_right(self, trial: FrozenTrial, places: Places) -> bool:
        """What a step that was cut off, or a worker that died, has left; False if nothing."""
        worker = trial.user_attrs.get(WORKER)
        if not is_born(self.problem, trial):
            return tell(self.study, trial.number, None)
        if christen(self.problem, self.study, trial):
            return True
        if not worker or not places.gone(worker):
            return False
        deaths = trial.user_attrs.get(KILLED, 0) + (trial.user_attrs.get(BEGUN) == worker)
        try:
            write(self.study, trial._trial_id, **{KILLED: deaths, BEGUN: "", WORKER: ""})
            if deaths >= DEATHS:
                reason = "the process was killed twice while it evaluated this map (out of memory?)"
                write(self.study, trial._trial_id, reason=reason)
                tell(self.study, trial.number, None)
        except UpdateFinishedTrialError:  # it was not dead, and has just told the outcome
            pass
        return True

    def _give(self, trial: FrozenTrial, worker: str) -> None:
        """Give a map to a worker, unless it is known already, or not worth it."""
        problem, study, number = self.problem, self.study, trial._trial_id
        base, choice = from_params(problem, trial.params)
        seen, size = seen_trials(problem, study), problem.total_bytes(base, choice)
        origin = trial.user_attrs.get("origin", "proposed")
        write(
            study, number, origin=origin, label=trial.user_attrs.get("label", f"map {trial.number}"),
            schemes=schemes_of(problem, base, choice), bytes=size, MB=round(size / 1e6, 3),
            predicted_divergence=problem.score(choice) + base_divergence(seen, base),
        )  # fmt: skip
        before = self._same_map(trial)
        if before is not None:  # a sampler that draws may draw a map again: nothing new to learn
            known = {name: before.user_attrs.get(name) for name in (*FIGURES, "seconds", "saving")}
            write(study, number, **{REPEATS: before.number}, **known)
            constrain(problem, study, number, before.user_attrs["margin"], before.user_attrs["ms"], size)
            tell(study, trial.number, before.value)
        elif origin not in ("enqueued", FALLBACK) and (reason := too_dear(problem, seen, base, choice)) is not None:
            write(study, number, reason=reason)
            # Nothing is known of its accuracy. Optuna reads constraints before the state, so they are set first.
            constrain(problem, study, number, 0.0, slowdown(problem, seen, base) * problem.total_ms(base, choice), size)
            tell(study, trial.number, None, TrialState.PRUNED)
        else:
            write(study, number, **{WORKER: worker})

    def _same_map(self, trial: FrozenTrial) -> FrozenTrial | None:
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return next((t for t in complete if t.params == trial.params), None)


def is_counted(trial: FrozenTrial) -> bool:
    """Whether a finished trial is one of those that a search may have: skipping costs nothing, and neither does what never
    began."""
    failed = trial.state == TrialState.FAIL
    return trial.state == TrialState.COMPLETE or (failed and "reason" in trial.user_attrs)


def too_dear(problem: Problem, seen: Sequence[Seen], base: str, choice: Choice) -> str | None:
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


def schemes_of(problem: Problem, base: str, choice: Choice) -> str:
    """How many layers run which scheme, for people."""
    counts = Counter(problem.layers(base, choice).values())
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
