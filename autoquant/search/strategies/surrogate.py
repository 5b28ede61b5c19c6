"""The exact optimum of the surrogate, corrected by what the trials so far have shown: the default strategy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import optuna

from autoquant.search.calibration import crossing
from autoquant.search.correction import corrected
from autoquant.search.ledger import (
    Exhausted,
    Seen,
    as_refined,
    base_divergence,
    best_saving,
    held,
    promise,
    seen_trials,
    slowdown,
    tried_choices,
)
from autoquant.search.problem import Choice, Problem
from autoquant.search.strategies.base import MapSampler, Strategy
from autoquant.search.surrogate import Region, solve, solve_capped

CLOSE = 1.05
"""Allowances this close to each other are not told apart any more: the search has converged."""
WORTH = 1.005
"""A proposal must promise this many times the incumbent's saving."""
LIKELY = 1.25
"""Under a cap: maps predicted to diverge more than this many times as much as the best one are not worth a trial."""
FREE_TRIALS = 6
"""Proposals before a trust region: the first ones find the neighbourhood."""


class SurrogateSampler(MapSampler):
    """Propose the exact optimum of the corrected surrogate under the divergence that the trials so far allow."""

    def propose(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> tuple[str, Choice]:
        problem = as_refined(self.problem, study)
        return propose(problem, seen_trials(problem, study), tried_choices(problem, study))


def correct(problem: Problem, seen: Sequence[Seen]) -> tuple[Problem, dict[str, float]]:
    """(the problem with corrected scores, what each base dtype adds by itself): together they predict a map's divergence."""
    offsets = {base: base_divergence(seen, base) for base in problem.base_dtypes}
    observed, own = [s.divergence for s in seen], [offsets[s.base] for s in seen]
    return corrected(problem, [s.choice for s in seen], observed, own), offsets


def propose(problem: Problem, seen: Sequence[Seen], tried: Mapping[str, list[Choice]]) -> tuple[str, Choice]:
    """The most promising untried map over all base dtypes.

    Raises:
        Exhausted: nothing promises more than the incumbent.
    """
    problem, offsets = correct(problem, seen)
    if problem.capped:
        return _propose_capped(problem, seen, tried, offsets)
    best, near = best_saving(seen), trust_region(seen)
    for allowance in allowances(problem, seen, offsets):
        for region in dict.fromkeys((near, None)):
            found = most_saving(problem, seen, tried, offsets, allowance, region)
            if found is not None and found[0] > WORTH * best:
                return found[1:]
    raise Exhausted


def most_saving(
    problem: Problem, seen: Sequence[Seen], tried: Mapping[str, Sequence[Choice]], offsets: Mapping[str, float],
    allowance: float, region: Region | None = None,
) -> tuple[float, str, Choice] | None:  # fmt: skip
    """(promised saving, base dtype, choice) of the untried map that saves most under an allowance, over all base dtypes."""
    found = []
    for base in problem.base_dtypes:
        if allowance < offsets[base]:
            continue
        choice = solve(problem, base, allowance - offsets[base], tried=tried[base], region=region)
        if choice is not None:
            found.append((held(problem, seen, base) * promise(problem, base, choice), base, choice))
    return max(found, key=lambda item: item[0], default=None)


def trust_region(seen: Sequence[Seen]) -> Region | None:
    """Around the incumbent, after `FREE_TRIALS` proposals: half of the groups may change, and half as many after each
    two proposals in a row that left the budget. Where nothing in it is worth a trial, the search looks outside."""
    within = [s for s in seen if s.margin <= 0 and any(s.choice)]
    proposed = [s for s in seen if s.proposed]
    if len(proposed) < FREE_TRIALS or not within:
        return None
    centre = max(within, key=lambda s: s.saving).choice
    failures = next((n for n, s in enumerate(reversed(proposed)) if s.margin <= 0), len(proposed))
    return Region(centre, max(1, len(centre) // 2 ** (1 + failures // 2)))


def _propose_capped(
    problem: Problem, seen: Sequence[Seen], tried: Mapping[str, list[Choice]], offsets: dict[str, float]
) -> tuple[str, Choice]:
    """The untried map under the caps with the smallest predicted divergence."""
    found = []
    for base in problem.base_dtypes:
        choice = solve_capped(problem, base, slow=slowdown(problem, seen, base), tried=tried[base])
        if choice is not None:
            found.append((problem.score(choice) + offsets[base], base, choice))
    best = min((s.divergence for s in seen if s.over <= 0), default=math.inf)
    if not found or min(found)[0] > LIKELY * best:
        raise Exhausted
    _, base, choice = min(found)
    return base, choice


def allowances(problem: Problem, seen: Sequence[Seen], offsets: dict[str, float]) -> Iterator[float]:
    """Divergences to allow, one after the other until a map under one of them is worth a trial.

    Everything while nothing has failed. Else between the largest that passed and the smallest above it that did not:
    first where the metric's margin is expected to cross 0, then upwards while nothing below is worth it. Once both ends
    have met, as much as has passed: a map that was overlooked may be under it still.
    """
    predicted = [(problem.score(s.choice) + offsets[s.base], s.margin) for s in seen]
    passed = max((d for d, margin in predicted if margin <= 0), default=0.0)
    failed = min((d for d, margin in predicted if margin > 0 and d > passed), default=math.inf)
    if math.isinf(failed):
        yield math.inf
        return
    low = max(passed, failed * 1e-3)
    if failed <= CLOSE * low:
        yield low
        return
    low = crossing([d for d, _ in predicted], [margin for _, margin in predicted], low, failed)
    yield low
    while failed > CLOSE * low:
        low = math.sqrt(low * failed)
        yield low
    yield failed * (1 - 1e-6)  # few maps, far apart: the best of them may be just below the one that failed


SURROGATE = Strategy(
    "the exact optimum of profile and prices (a mixed-integer program), corrected by each trial", SurrogateSampler,
    guided=True,
)  # fmt: skip
