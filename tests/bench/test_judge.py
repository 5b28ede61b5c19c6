"""What is said of rounds of calls: figures, the best batch size, and when nothing can be said."""

from __future__ import annotations

import pytest

from autoquant.bench.judge import ENOUGH, NOISY, Point, best, disagreement, point
from autoquant.bench.shapes import Shape


def made(batch_size: int, items_per_s: float, *, noise: float = 0.0, waited: float | None = 0.0) -> Point:
    return Point(
        threads=1, batch_size=batch_size, seq_len=16, p50_ms=1e3 * batch_size / items_per_s, p90_ms=1.0, p99_ms=None,
        spread_ms=0.0, noise=noise, waited=waited, items_per_s=items_per_s, tokens_per_s=16 * items_per_s,
        peak_memory_bytes=1, calls=1, rounds=1,
    )  # fmt: skip


def test_rounds_that_agree() -> None:
    assert disagreement([10.0] * 8) == 0
    assert disagreement([10.0, 10.1, 9.9, 10.0, 10.1, 9.9, 10.0, 10.0]) < 0.02
    assert disagreement([5.0, 50.0]) == 0, "two rounds say nothing"


@pytest.mark.parametrize(
    "medians",
    [
        [10.0] * 4 + [12.0] * 4,  # something came
        [10.0, 12.0] * 4,  # something comes and goes
        [10.0, 14.0, 9.0, 13.0, 10.5, 8.0, 14.5, 9.5],
    ],
)
def test_rounds_that_do_not_agree(medians: list[float]) -> None:
    assert disagreement(medians) > NOISY


def test_one_disturbed_round_is_no_noise() -> None:
    assert disagreement([10.0] * 9 + [90.0]) == 0


def test_figures_of_a_shape() -> None:
    found = point(Shape(2, 8, 4), [[1.0, 2.0, 3.0], [2.0]], [0.0, 0.5], 7)
    assert found.p50_ms == 2.0 and found.calls == 4 and found.rounds == 2
    assert found.items_per_s == 2000 and found.tokens_per_s == 16_000
    assert found.p99_ms is None, "four calls have no 99th percentile"
    assert found.waited == 0.25 and found.noisy
    many = point(Shape(1, None, 1), [[1.0] * ENOUGH], [None], 7)
    assert many.p99_ms == 1.0 and many.tokens_per_s is None and many.waited is None and not many.noisy


def test_the_best_batch_size_and_where_throughput_saturates() -> None:
    found = best([made(1, 100), made(2, 180), made(4, 196), made(8, 200), made(16, 190)])
    assert (found.batch_size, found.saturates_at, found.like, found.open_ended) == (8, 4, (), False)
    assert best([made(1, 100), made(2, 180)]).open_ended, "a third might be better still"
    assert not best([made(1, 100)]).open_ended


def test_batch_sizes_that_noise_cannot_tell_apart() -> None:
    found = best([made(1, 100, noise=0.01), made(2, 198, noise=0.02), made(4, 200, noise=0.02)])
    assert found.batch_size == 4 and found.like == (2,)


@pytest.mark.parametrize(
    ("more", "word"), [({"noise": 0.3}, "differ by 30%"), ({"waited": 0.2}, "waited for a CPU for 20%")]
)
def test_a_noisy_machine_cannot_tell(more: dict, word: str) -> None:
    found = best([made(1, 100, **more), made(2, 200, **more)])
    assert found.batch_size is None and found.items_per_s is None and found.saturates_at is None
    assert word in found.reason


def test_one_noisy_shape_among_quiet_ones_is_only_marked() -> None:
    points = [made(1, 100, noise=0.4), made(2, 180), made(4, 200)]
    assert points[0].noisy
    assert best(points).batch_size == 4
