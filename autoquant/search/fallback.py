"""A map to fall back on: what certification tests beside the best one, which may fail there by a hair.

The best map of a search lies just within the budget on the search split, so on other data it passes about as often as not when
its margin is small. The maps tried on the way there are as close to it, and those that every search begins with are far away.
Nothing has asked yet for what is as fast, as far as timings can tell, and diverges least; where that is hardly safer, there is a
map in between, at a fixed share of the best one's divergence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoquant.search.ladder import SAFER
from autoquant.search.ledger import Seen, promise
from autoquant.search.problem import Choice, Problem
from autoquant.search.strategies.surrogate import WORTH as STEP
from autoquant.search.strategies.surrogate import correct, most_saving
from autoquant.search.surrogate import solve_safest

FALLBACK = "fallback"
"""Origin of its trial."""
SHARE = 0.9 * SAFER
"""Of the best map's divergence: what is predicted is off by a tenth now and then."""
WORTH = 1.02
"""Times the saving of what would be fallen back on otherwise."""


def fall_back(
    problem: Problem, seen: Sequence[Seen], tried: Mapping[str, Sequence[Choice]]
) -> tuple[str, Choice] | None:
    """(base dtype, choice) of an untried map that is safer than the best one.

    The safest that saves as much, but for less than a proposal must promise more, if it is predicted to diverge clearly less
    than any such map that was tried. Else the most saving one predicted to diverge at most `SHARE` times as much as the best
    one. None where no quantized map is within the budget yet, or a safer one that was tried saves as much.
    """
    within = [s for s in seen if s.margin <= 0]
    best = max((s for s in within if any(s.choice)), key=lambda s: s.saving, default=None)
    if best is None:
        return None
    known = max((s.saving for s in within if s.divergence < SAFER * best.divergence), default=0.0)
    problem, offsets = correct(problem, seen)
    equal = solve_safest(problem, best.base, best.choice, STEP, tried=tried[best.base])
    if equal is not None:
        least = promise(problem, best.base, best.choice) / STEP
        alike = [s.divergence for s in seen if any(s.choice) and promise(problem, s.base, s.choice) >= least]
        if problem.score(equal) + offsets[best.base] < SAFER * min(alike):
            return best.base, equal
    allowance = SHARE * min(best.divergence, problem.score(best.choice) + offsets[best.base])
    found = most_saving(problem, seen, tried, offsets, allowance)
    return found[1:] if found is not None and found[0] > WORTH * known else None
