"""Judging from the first items: early where it can be, and rarely against the whole split."""

from __future__ import annotations

import numpy as np
import pytest

from autoquant.search.race import ERROR, FIRST, LEAST, chunks, decide, looks


@pytest.mark.parametrize("total", [8, 63, 64, 65, 100, 500, 872, 5000])
def test_looks_grow_and_end_with_all_items(total: int) -> None:
    found = looks(total)
    assert found[-1] == total and found == sorted(set(found)) and found[0] >= min(FIRST, total)
    assert [item for part in chunks(range(total)) for item in part] == list(range(total))


def test_it_waits_and_then_knows() -> None:
    assert decide(0.5, 0.01, LEAST - 1, 100) is None, "too few items"
    assert decide(0.5, 0.01, 50, 100) is False
    assert decide(-0.5, 0.01, 50, 100) is True
    assert decide(0.005, 0.01, 50, 100) is None
    assert decide(0.005, 0.01, 99, 100) is False, "one item cannot change that"


@pytest.mark.parametrize(("margin", "within"), [(-1e-9, True), (0.0, True), (1e-9, False)])
def test_the_last_item_settles_it(margin: float, within: bool) -> None:
    assert decide(margin, 1.0, 100, 100) is within


@pytest.mark.parametrize("kind", ["flips", "normal"])
def test_few_answers_are_wrong_over_maps_on_both_sides_of_the_budget(kind: str) -> None:
    rng, wrong, read, count, total = np.random.default_rng(1), 0, 0, 1200, 800
    for _ in range(count):
        if kind == "flips":
            loss, gain = rng.uniform(0, 0.08), rng.uniform(0, 0.05)
            split = rng.choice([1.0, -1.0, 0.0], total, p=[loss, gain, 1 - loss - gain]) - 0.015
        else:
            split = rng.normal(rng.uniform(-0.2, 0.2), 1, total)
        within = bool(split.mean() <= 0)
        for n in looks(total):
            part = split[:n]
            found = decide(part.mean(), part.std() / np.sqrt(n), n, total)
            if found is not None:
                break
        wrong += found != within
        read += n
    assert 0 < wrong / count <= ERROR, "and some are: else it reads more than it need"
    assert read / count < 0.75 * total
