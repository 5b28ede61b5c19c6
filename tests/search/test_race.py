"""Judging from the first items: right, early where it can be, and almost never against the whole split."""

from __future__ import annotations

import numpy as np
import pytest

from autoquant.search.race import ERROR, FIRST, chunks, decide_asymptotic, decide_mean, looks


def race(drops: np.ndarray, limit: float) -> tuple[bool, int]:
    """(answer, items read) with looks as in a search."""
    for n in looks(len(drops)):
        found = decide_mean(drops[:n], len(drops), 1.0, limit)
        if found is not None:
            return found, n
    return bool(drops.mean() <= limit), len(drops)


@pytest.mark.parametrize("total", [8, 63, 64, 65, 100, 500, 872, 5000])
def test_looks_grow_and_end_with_all_items(total: int) -> None:
    found = looks(total)
    assert found[-1] == total and found == sorted(set(found)) and found[0] >= min(FIRST, total)
    assert [item for part in chunks(range(total)) for item in part] == list(range(total))


def test_a_map_that_breaks_the_model_is_known_after_the_first_look() -> None:
    drops = np.random.default_rng(0).choice([0.0, 1.0], 1000, p=[0.6, 0.4])
    assert race(drops, 0.01) == (False, looks(1000)[0])


def test_a_map_that_changes_nothing_is_known_before_the_end() -> None:
    answer, read = race(np.zeros(2000), 0.01)
    assert answer and read < 2000


def test_the_last_item_settles_it() -> None:
    drops = np.array([0.0, 1.0, 0.0, 0.0])
    assert decide_mean(drops, 4, 1.0, 0.25) is True
    assert decide_mean(drops, 4, 1.0, 0.24) is False


@pytest.mark.parametrize(("loss", "gain"), [(0.03, 0.02), (0.05, 0.038), (0.012, 0.004)])
def test_the_whole_split_is_rarely_contradicted(loss: float, gain: float) -> None:
    """Maps whose drop is at the budget, a little below or above: the hardest there are."""
    rng = np.random.default_rng(1)
    split = rng.choice([1.0, -1.0, 0.0], 800, p=[loss, gain, 1 - loss - gain])
    wrong = {}
    for limit in (split.mean() - 1e-9, split.mean() + 1e-9):
        answers = [race(rng.permutation(split), limit)[0] for _ in range(150)]
        wrong[limit] = np.mean([answer != (split.mean() <= limit) for answer in answers])
    assert max(wrong.values()) <= ERROR + 3 * np.sqrt(ERROR * (1 - ERROR) / 150)


def test_the_asymptotic_rule_waits_and_then_knows() -> None:
    assert decide_asymptotic(0.5, 0.01, 10, 100, 3) is None, "too few items"
    assert decide_asymptotic(0.5, 0.01, 50, 100, 3) is False
    assert decide_asymptotic(-0.5, 0.01, 50, 100, 3) is True
    assert decide_asymptotic(0.005, 0.01, 50, 100, 3) is None
    assert decide_asymptotic(0.005, 0.01, 100, 100, 3) is False


@pytest.mark.parametrize("shift", [-0.02, 0.02])
def test_the_asymptotic_rule_rarely_contradicts_the_whole_split(shift: float) -> None:
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(300):
        split = rng.normal(0, 1, 400)
        split += shift - split.mean()
        ends = looks(400)
        for n in ends:
            found = decide_asymptotic(split[:n].mean(), split[:n].std() / np.sqrt(n), n, 400, len(ends) - 1)
            if found is not None:
                wrong += found != (shift <= 0)
                break
    assert wrong / 300 <= ERROR + 3 * np.sqrt(ERROR / 300)
