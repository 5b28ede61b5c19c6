"""The surrogate: costs and scores add up, so the best map under a divergence allowance is a multiple-choice knapsack.

It is solved with `scipy.optimize.milp`, to `GAP` of the optimum; what trials have shown of the scores is in `correction`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, lil_matrix

from autoquant.search.hushed import hushed
from autoquant.search.problem import TIME_WEIGHT, Choice, Problem

TIE = 0.01
"""Times of one layer that differ by less than this share of the float time are told apart by their scores alone: a
difference that small is timing noise."""
WORTH_OF_SCORE = 1e-3
"""Share of the saving given up for a map without any divergence, against one of the largest: what tells equal costs apart."""
GAP = 1e-4
"""Share of its cost by which a map may miss the optimum: far less than what a price is known to."""

Table = Sequence[np.ndarray]
"""A figure of each group's options."""


@dataclass(frozen=True)
class Region:
    """Maps in which at most `radius` groups differ from `centre` (Hamming distance)."""

    centre: Choice
    radius: int


def solve(
    problem: Problem, base: str, allowance: float, *, tried: Sequence[Choice] = (), region: Region | None = None,
    time_limit: float = 5.0,
) -> Choice | None:  # fmt: skip
    """The cheapest choice whose predicted divergence is at most `allowance`; None if there is none that was not tried.

    The objective (log latency, log size, or their mean) is linearised at the current solution and solved again until it
    stays: two or three rounds.

    Args:
        allowance: may be infinite.
        tried: choices to leave out.
        region: the trust region, if there is one.
    """
    choice: Choice = tuple(0 for _ in problem.groups)
    for _ in range(4):
        costs = _linear_costs(problem, base, choice)
        found = _knapsack(costs, [(problem.scores, allowance)], tried, region, time_limit)
        if found is None or found == choice:
            return found
        choice = found
    return choice


def solve_capped(
    problem: Problem, base: str, *, slow: float = 1.0, tried: Sequence[Choice] = (), time_limit: float = 5.0
) -> Choice | None:  # fmt: skip
    """The choice of the smallest predicted divergence under the problem's caps; None if no untried one is under them.

    Args:
        slow: how many times its predicted latency a map takes end to end.
    """
    limits = [
        (list(problem.ms[base]), problem.max_ms / slow - problem.base_ms[base]),
        (list(problem.bytes[base]), problem.max_bytes - problem.base_bytes[base]),
    ]
    return _knapsack(problem.scores, limits, tried, None, time_limit)


def solve_safest(
    problem: Problem, base: str, best: Choice, worth: float, *, tried: Sequence[Choice] = (), time_limit: float = 5.0
) -> Choice | None:
    """The choice of the smallest predicted divergence that saves as much as `best` by its price; None if none is untried.

    Log saving is convex in latency and size, so that its tangent at `best` is nowhere above it: what is under the linear limit
    saves as much as was asked for.

    Args:
        worth: how many times less than `best` it may save.
    """
    time_weight = TIME_WEIGHT[problem.objective]
    per_ms = time_weight / problem.total_ms(base, best)
    per_byte = (1 - time_weight) / problem.total_bytes(base, best)
    costs = [per_ms * t + per_byte * b for t, b in zip(problem.ms[base], problem.bytes[base], strict=True)]
    others = per_ms * problem.base_ms[base] + per_byte * problem.base_bytes[base]
    return _knapsack(problem.scores, [(costs, 1 + math.log(worth) - others)], tried, None, time_limit)


def _linear_costs(problem: Problem, base: str, at: Choice) -> Table:
    """First-order cost of each option in units of log saving, ties within the timing noise broken by the scores."""
    time_weight = TIME_WEIGHT[problem.objective]
    ms, size = problem.total_ms(base, at), problem.total_bytes(base, at)
    spread = sum(float(s.max()) for s in problem.scores) or 1.0
    costs = []
    for t, b, s in zip(problem.ms[base], problem.bytes[base], problem.scores, strict=True):
        grain = max(TIE * float(t[0]), 1e-12)
        cost = time_weight * np.round(t / grain) * grain / ms + (1 - time_weight) * b / size
        costs.append(cost + WORTH_OF_SCORE * s / spread)
    return costs


def _knapsack(
    costs: Table, limits: Sequence[tuple[Table, float]], tried: Sequence[Choice], region: Region | None,
    time_limit: float,
) -> Choice | None:  # fmt: skip
    """One option a group at the least cost, with each table's sum at most its limit."""
    sizes = [len(c) for c in costs]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    total = int(starts[-1])

    def picked(choices: Sequence[Choice]) -> csr_matrix:
        """A row a choice, whose product with the solution is the number of groups that agree."""
        rows = lil_matrix((len(choices), total))
        for row, choice in enumerate(choices):
            for group, index in enumerate(choice):
                rows[row, starts[group] + index] = 1
        return rows.tocsr()

    one = lil_matrix((len(sizes), total))
    for group, size in enumerate(sizes):
        one[group, starts[group] : starts[group] + size] = 1
    constraints = [LinearConstraint(one.tocsr(), 1, 1)]
    for table, limit in limits:
        if np.isfinite(limit):
            flat = np.concatenate(table)
            unit = max(float(np.abs(flat).max()), 1e-30)
            constraints.append(LinearConstraint((flat / unit)[None, :], -np.inf, limit / unit))
    if tried:
        constraints.append(LinearConstraint(picked(tried), -np.inf, len(sizes) - 1))
    if region is not None:
        constraints.append(LinearConstraint(picked([region.centre]), len(sizes) - region.radius, np.inf))
    flat_cost = np.concatenate(costs)
    with hushed():
        result = milp(
            flat_cost / max(float(np.abs(flat_cost).max()), 1e-30),
            constraints=constraints,
            integrality=np.ones(total),
            bounds=Bounds(0, 1),
            options={"time_limit": time_limit, "mip_rel_gap": GAP},
        )
    if result.x is None:
        return None
    return tuple(int(np.argmax(result.x[starts[g] : starts[g + 1]])) for g in range(len(sizes)))
