"""One layer at a time, by saving per divergence: what most tools do, with a trial a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import optuna

from autoquant.search.ledger import Exhausted, Seen, as_refined, promise, seen_trials, slowdown, tried_choices
from autoquant.search.problem import Choice, Problem
from autoquant.search.strategies.base import MapSampler, Strategy

Map = tuple[str, Choice]


class GreedySampler(MapSampler):
    """From the best map so far (at first without quantization), the step of one group that saves most per divergence.

    A map that is within the budget is the next one to step from. A step that left the budget is not taken again, in
    whatever company. Under a cap all steps to the cap are one proposal: a map beyond it answers no question.
    """

    def propose(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> Map:
        problem, seen = as_refined(self.problem, study), seen_trials(self.problem, study)
        tried = tried_choices(problem, study)
        if problem.capped:
            return self._to_the_cap(problem, seen, tried)
        start = _start(problem, seen)
        forbidden = {
            (s.base, g, i) for s in seen if s.margin > 0 and s.proposed for g, i in _last_step(problem, s, seen)
        }
        for base, choice in _steps(problem, *start):
            ((group, option),) = _changes(start[1], choice)
            if choice not in tried[base] and (base, group, option) not in forbidden:
                return base, choice
        raise Exhausted

    def _to_the_cap(self, problem: Problem, seen: Sequence[Seen], tried: dict[str, list[Choice]]) -> Map:
        found: list[tuple[float, Map]] = []
        for base in problem.base_dtypes:
            factor = slowdown(problem, seen, base)
            choice: Choice | None = tuple(0 for _ in problem.groups)
            while choice is not None and (
                choice in tried[base]
                or problem.over(factor * problem.total_ms(base, choice), problem.total_bytes(base, choice)) > 0
            ):
                choice = next((c for _, c in _steps(problem, base, choice)), None)
            if choice is not None:
                found.append((problem.score(choice), (base, choice)))
        if not found:
            raise Exhausted
        best = min((s.divergence for s in seen if s.over <= 0), default=math.inf)
        divergence, proposal = min(found)
        if divergence > 2 * best:
            raise Exhausted
        return proposal


def _start(problem: Problem, seen: Sequence[Seen]) -> Map:
    """The best promise of all maps within the budget; without any, the fastest base dtype unquantized."""
    within = [(promise(problem, s.base, s.choice), s.base, s.choice) for s in seen if s.margin <= 0]
    nothing = tuple(0 for _ in problem.groups)
    floats = [(promise(problem, base, nothing), base, nothing) for base in problem.base_dtypes]
    _, base, choice = max(within or floats)
    return base, choice


def _steps(problem: Problem, base: str, choice: Choice) -> Iterator[Map]:
    """Maps that change one group and save more, most saving per divergence first."""
    now = math.log(promise(problem, base, choice))
    found = []
    for group, options in enumerate(problem.options):
        for option in range(len(options)):
            if option == choice[group]:
                continue
            step = (*choice[:group], option, *choice[group + 1 :])
            gain = math.log(promise(problem, base, step)) - now
            harm = float(problem.scores[group][option] - problem.scores[group][choice[group]])
            if gain > 0:
                found.append((harm <= 0, gain / harm if harm > 0 else gain, step))
    for *_, step in sorted(found, reverse=True):
        yield base, step


def _changes(before: Choice, after: Choice) -> list[tuple[int, int]]:
    return [(g, b) for g, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]


def _last_step(problem: Problem, failed: Seen, seen: Sequence[Seen]) -> list[tuple[int, int]]:
    """The one group in which a failed map differs from the map that it stepped from."""
    for s in seen:
        if s.base == failed.base and s.margin <= 0 and len(changed := _changes(s.choice, failed.choice)) == 1:
            return changed
    return [(g, i) for g, i in enumerate(failed.choice) if i] if sum(map(bool, failed.choice)) == 1 else []


GREEDY = Strategy("one layer at a time from the best map so far, by saving per divergence", GreedySampler, guided=True)
