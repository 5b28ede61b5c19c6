"""What is kept of a search for another budget."""

from __future__ import annotations

from dataclasses import replace

from autoquant.search import front
from autoquant.values import Candidate

SOME = Candidate(0, "", "proposed", "float32", {"layer": "int8-channel-sym"}, saving=1.0, drop=0.0)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(1.0, 0.0), (3.0, 0.02), (2.0, 0.01), (2.5, 0.03), (1.5, 0.01), (3.0, 0.05)]
    found = front([replace(SOME, number=n, saving=s, drop=d) for n, (s, d) in enumerate(points)])
    assert [c.number for c in found] == [1, 2, 0]


def test_what_was_not_evaluated_is_not_on_it() -> None:
    assert front([replace(SOME, state=state) for state in ("failed", "skipped")]) == []
