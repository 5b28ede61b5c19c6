"""The maps that every search begins with, and the search spaces that are too large for a strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoquant.errors import UsageError
from autoquant.search.ledger import promise
from autoquant.search.problem import FLOAT, Choice, Problem, level
from autoquant.search.strategies import STRATEGIES
from autoquant.search.surrogate import solve

FRONT_SHARES = (0.5, 0.25, 0.1, 0.03)
"""Of the divergence of the map that saves most: the maps of the profile's front that a strategy is warm-started with."""

UNIFORM_LIMIT = 4
"""Uniform maps that are evaluated, spread evenly over those that no other uniform map beats in saving and score: the most saving
one, the one of the smallest score, and what lies between them. Where the certification data cannot settle the bolder ones, there
is something between these and no quantization at all. Of those whose savings timings cannot tell apart, only the one of the
smallest score counts."""

Start = tuple[str, str, Choice]
"""(label, base dtype, choice)."""


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


def starting_maps(problem: Problem) -> list[Start]:
    """(label, base dtype, choice) of the maps that every search begins with: no quantization, then uniform schemes."""
    maps = [(base, base, tuple(0 for _ in problem.groups)) for base in problem.base_dtypes]
    uniform: list[tuple[float, float, str, str, Choice]] = []
    for base in problem.base_dtypes:
        for scheme in sorted({name for options in problem.options for name in options} - {FLOAT}):
            choice = problem.uniform(scheme)
            gain = problem.saving(problem.total_ms(base, choice), problem.total_bytes(base, choice))
            uniform.append((1 / gain, problem.score(choice), f"uniform {scheme} in {base}", base, choice))
    costs = {label: cost for cost, _, label, *_ in uniform}
    levels = level(costs, dict.fromkeys(costs, 0.0))
    front: list[tuple[float, float, str, str, Choice]] = []
    for item in sorted(uniform, key=lambda item: (levels[item[2]], item[1])):
        if not front or item[1] < front[-1][1]:
            front.append(item)
    count = min(len(front), UNIFORM_LIMIT)
    chosen = [front[round(place * (len(front) - 1) / max(1, count - 1))] for place in range(count)]
    return maps + [(label, base, choice) for *_, label, base, choice in chosen]


def warm_starts(problem: Problem, strategy: str) -> list[Start]:
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
