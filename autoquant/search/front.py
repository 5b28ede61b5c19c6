"""The Pareto front of a search, saving against drop: what `autoquant pick` chooses from."""

from __future__ import annotations

from collections.abc import Sequence

from autoquant.values import Candidate


def front(found: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that no other beats in both saving and drop, most saving first."""
    best: list[Candidate] = []
    complete = (c for c in found if c.state == "complete")
    for candidate in sorted(complete, key=lambda c: (-c.saving, c.drop)):
        if not best or candidate.drop < best[-1].drop:
            best.append(candidate)
    return best
