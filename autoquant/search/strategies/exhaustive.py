"""Every map there is, most promising first. Only for small spaces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import optuna

from autoquant.search.ledger import Exhausted, best_saving, held, promise, seen_trials, slowdown, tried_choices
from autoquant.search.problem import Choice, Problem
from autoquant.search.strategies.base import MapSampler, Strategy

LIMIT = 10_000
"""Maps that a search may have to be tried one by one."""


class ExhaustiveSampler(MapSampler):
    """The untried map with the largest promised saving; under a cap, with the smallest predicted divergence.

    The end is when no map is left that can beat the best one by its price: all others are proven worse, if the prices
    are right.
    """

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        maps = [(base, choice) for base in problem.base_dtypes for choice in _choices(problem)]
        if problem.capped:
            self.ordered = sorted(maps, key=lambda map_: problem.score(map_[1]))
        else:
            self.ordered = sorted(maps, key=lambda map_: -promise(problem, *map_))

    def propose(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> tuple[str, Choice]:
        problem, seen = self.problem, seen_trials(self.problem, study)
        tried = {base: set(choices) for base, choices in tried_choices(problem, study).items()}
        best = best_saving(seen)
        factor = {base: (slowdown if problem.capped else held)(problem, seen, base) for base in problem.base_dtypes}
        for base, choice in self.ordered:
            if choice in tried[base]:
                continue
            if problem.capped:
                ms = factor[base] * problem.total_ms(base, choice)
                if problem.over(ms, problem.total_bytes(base, choice)) <= 0:
                    return base, choice
            elif factor[base] * promise(problem, base, choice) > best:
                return base, choice
        raise Exhausted


def _choices(problem: Problem) -> Iterator[Choice]:
    return product(*(range(len(options)) for options in problem.options))


EXHAUSTIVE = Strategy(
    f"every map that can beat the best one, most promising first; spaces of up to {LIMIT} maps",
    ExhaustiveSampler,
    guided=True,
    limit=LIMIT,
)
