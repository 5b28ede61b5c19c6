"""Which maps are certified, in which order."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from autoquant.search import finalists, ladder, preferred
from autoquant.search.problem import level
from autoquant.values import Candidate


def candidate(
    saving: float, divergence: float, *, margin: float = -1.0, scheme: str = "int8-channel-sym", state: str = "complete",
    ms: float = float("nan"), noise: float = 0.0, number: int = 0, origin: str = "proposed",
) -> Candidate:  # fmt: skip
    return Candidate(
        number, f"{saving}", origin, "float32", {"layer": scheme}, state=state, saving=saving, margin=margin,
        divergence=divergence, ms=ms, noise=noise,
    )  # fmt: skip


FLOAT = candidate(1.0, 0.0, scheme="float32")


def test_safe_comes_before_aggressive_and_the_best_saving_is_last() -> None:
    found = ladder([FLOAT, candidate(2, 0.01), candidate(4, 0.1), candidate(3, 0.04)], rungs=3)
    assert [c.saving for c in found] == [2, 3, 4]
    assert all(a.divergence < b.divergence for a, b in itertools.pairwise(found))


def test_the_limit_keeps_the_aggressive_end() -> None:
    found = ladder([FLOAT, candidate(2, 0.01), candidate(4, 0.1), candidate(3, 0.04)], rungs=2)
    assert [c.saving for c in found] == [3, 4]
    assert [c.saving for c in ladder([FLOAT, candidate(2, 0.01), candidate(4, 0.1)], rungs=1)] == [4]


def test_a_map_that_saves_less_without_being_clearly_safer_is_no_rung() -> None:
    assert [c.saving for c in ladder([FLOAT, candidate(4, 0.1), candidate(3, 0.09), candidate(2, 0.2)])] == [4]


def test_only_quantized_maps_that_fit_and_save_more_than_any_float_map() -> None:
    half = candidate(2.5, 0.001, scheme="float32")
    found = ladder(
        [
            FLOAT,
            half,
            candidate(9, 0.1, margin=0.1),
            candidate(8, 0.1, state="failed"),
            candidate(3, 0.1),
            candidate(2, 0.01),
        ]
    )
    assert [c.saving for c in found] == [3]


def test_when_none_fits_the_nearest_is_tested() -> None:
    found = ladder(
        [FLOAT, candidate(3, 0.1, margin=0.5), candidate(2, 0.05, margin=0.1), candidate(0.5, 0.01, margin=0.01)]
    )
    assert [c.saving for c in found] == [2]
    assert ladder([FLOAT]) == [] == ladder([])


@pytest.mark.parametrize(("objective", "close", "apart"), [("latency", 3.95, 3.85), ("balanced", 3.97, 3.93)])
def test_of_equally_fast_maps_the_one_with_the_smaller_divergence(objective: str, close: float, apart: float) -> None:
    """A saving of `balanced` has the square root of the speed-up in it: 2% of the time are 1% of it."""
    best = candidate(4, 0.1)
    assert preferred([best, candidate(close, 0.01)], objective).saving == close
    assert preferred([best, candidate(apart, 0.01)], objective) is best
    assert preferred([best, candidate(close, 0.2)], objective) is best
    assert ladder([FLOAT, best, candidate(close, 0.01)], objective=objective)[-1].saving == close


def test_bytes_are_never_noise() -> None:
    best = candidate(4, 0.1)
    assert preferred([best, candidate(3.999, 0.01)], "memory") is best


def test_noise_that_was_measured_widens_the_tie_but_only_so_far() -> None:
    best, other = candidate(4, 0.1, ms=10, noise=0.04), candidate(3.87, 0.01, ms=10.35)
    assert preferred([best, other], "latency") is other
    assert preferred([candidate(4, 0.1, ms=10), other], "latency").saving == 4
    assert preferred([candidate(4, 0.1, ms=10, noise=0.5), candidate(3.7, 0.01, ms=10.8)], "latency").saving == 4


def test_a_map_that_is_slower_than_float_pays_with_its_bytes_only_where_these_were_asked_for() -> None:
    plain, small = candidate(1, 0, scheme="float32", ms=10), candidate(1.8, 0.01, ms=11)
    assert ladder([plain, small]) == [] == ladder([plain, small], objective="latency")
    assert ladder([plain, small], objective="memory") == [small]
    assert preferred([plain, small], "balanced") is plain and preferred([plain, small], "memory") is small


def test_a_map_as_fast_as_float_pays_with_its_bytes_but_not_for_latency() -> None:
    plain, small = candidate(1, 0, scheme="float32", ms=10), candidate(1.3, 0.01, ms=10.05)
    assert ladder([plain, small]) == [small]
    same = candidate(1.005, 0.01, ms=9.95)
    assert ladder([plain, same], objective="latency") == []


def test_no_map_is_preferred_to_a_faster_uniform_one() -> None:
    uniform, mixed = candidate(3.9, 0.1, ms=10, origin="enqueued"), candidate(4.0, 0.01, ms=11)
    assert preferred([uniform, mixed], "balanced") is uniform


def test_finalists_are_the_floats_what_saves_most_and_the_best_uniform_maps() -> None:
    found = [
        candidate(1, 0, scheme="float32", number=0),
        candidate(2, 0.2, origin="enqueued", number=1),
        candidate(2.1, 0.2, origin="enqueued", number=2, margin=1.0),
        candidate(1.9, 0.2, origin="enqueued", number=3),
        candidate(1.8, 0.2, origin="enqueued", number=4),
        *(candidate(3 + i / 10, 0.2, number=10 + i) for i in range(5)),
    ]
    assert [c.number for c in finalists(found)] == [0, 1, 3, 12, 13, 14]
    sized = [replace(c, bytes=10) for c in found]
    assert [c.number for c in finalists(sized, room=30)] == [0, 1, 14]  # what may be shipped at all, whatever the room
    assert [c.number for c in finalists(sized, room=0)] == [0, 14]


def test_times_that_noise_explains_are_levelled_and_others_are_not() -> None:
    ms = {"b": 1.01, "a": 1.0, "c": 1.03, "d": 1.2}
    assert level(ms, dict.fromkeys(ms, 0.0)) == {"b": 1.0, "a": 1.0, "c": 1.03, "d": 1.2}
    assert level(ms, dict.fromkeys(ms, 0.03)) == {"b": 1.0, "a": 1.0, "c": 1.0, "d": 1.2}
    assert level(ms, dict.fromkeys(ms, 9.0))["d"] == 1.2
    assert level(ms, {}) == ms
    assert level({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0}) == {"a": 0.0, "b": 0.0}
