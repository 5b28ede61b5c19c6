"""Which maps are certified, in which order."""

from __future__ import annotations

import itertools

from autoquant.search import ladder
from autoquant.values import Candidate


def candidate(
    saving: float, divergence: float, *, margin: float = -1.0, scheme: str = "int8-channel-sym", state: str = "complete"
) -> Candidate:
    return Candidate(
        0, f"{saving}", "proposed", "float32", {"layer": scheme}, state=state, saving=saving, margin=margin,
        divergence=divergence,
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
