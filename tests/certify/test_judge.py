"""The verdict on item values, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from autoquant.certify.judge import drop_error, judge, paired_drop
from autoquant.tasks.base import Batch, Task
from autoquant.values import Budget


class Values(Task):
    """A task that is nothing but the way it judges."""

    name = "values"
    metric = "accuracy"

    def __init__(self, **attributes: Any) -> None:
        for key, value in attributes.items():
            setattr(self, key, value)

    def rows(self, split: str) -> int:
        raise NotImplementedError

    items = lengths = rows  # type: ignore[assignment]

    def batch(self, split: str, rows: Sequence[int]) -> Batch:
        raise NotImplementedError

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        raise NotImplementedError

    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None) -> np.ndarray:
        raise NotImplementedError

    def example(self, batch_size: int, seq_len: int | None) -> Batch:
        raise NotImplementedError


class Spread(Values):
    """A metric that is no mean of items: higher is better, its value is the items' standard deviation."""

    mean_of_items = False
    bounds = None

    def aggregate(self, split: str, values: np.ndarray, index: np.ndarray | None = None) -> float:
        return float(np.std(values if index is None else values[index]))


ACCURACY = Values()
PERPLEXITY = Values(metric="perplexity", higher_is_better=False, relative=True, bounds=None)


def right(n: int = 4000, wrong: int = 0, also: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Float right on all but `also` items; the other model wrong on `wrong` of the first items, right on the `also`."""
    before, after = np.ones(n), np.ones(n)
    after[:wrong] = 0
    before[n - also :] = 0
    return before, after


@pytest.mark.parametrize(("wrong", "status"), [(0, "PASS"), (4, "PASS"), (40, "INCONCLUSIVE"), (200, "FAIL")])
def test_the_bound_decides_and_not_the_point_estimate(wrong: int, status: str) -> None:
    found = judge(ACCURACY, "certification", *right(wrong=wrong), Budget(0.01))
    assert found.status == status and found.drop == pytest.approx(wrong / 4000)
    assert found.lower_bound <= found.drop <= found.upper_bound
    assert (found.n, found.confidence, found.metric) == (4000, 0.95, "accuracy")
    assert found.float_value == 1.0 and found.quantized_value == pytest.approx(1 - wrong / 4000)


def test_what_would_settle_it_is_said_only_when_it_is_open() -> None:
    open_one = judge(ACCURACY, "certification", *right(400, 2), Budget(0.01))
    assert open_one.status == "INCONCLUSIVE" and open_one.needed is not None and open_one.needed > 400
    assert judge(ACCURACY, "certification", *right(wrong=4), Budget(0.01)).needed is None
    assert judge(ACCURACY, "certification", *right(wrong=200), Budget(0.01)).needed is None


def test_a_gain_passes() -> None:
    found = judge(ACCURACY, "certification", *right(also=200), Budget(0.01))
    assert found.status == "PASS" and found.drop == pytest.approx(-0.05)


def test_lower_is_better_turns_the_sign() -> None:
    errors = Values(metric="error", higher_is_better=False)
    before, after = right(wrong=200)
    worse = judge(errors, "certification", 1 - before, 1 - after, Budget(0.01))
    better = judge(errors, "certification", before, after, Budget(0.01))
    assert worse.status == "FAIL" and worse.drop == pytest.approx(0.05)
    assert better.status == "PASS" and better.drop == pytest.approx(-0.05)


def test_a_relative_drop_is_a_share_of_the_float_value() -> None:
    before, after = right(wrong=40, also=3000)
    absolute = paired_drop(ACCURACY, "s", before, after, Budget(0.01))
    relative = paired_drop(ACCURACY, "s", before, after, Budget(0.01, relative=True))
    assert relative == pytest.approx(absolute / 0.25)
    found = judge(ACCURACY, "s", before, after, Budget(0.01, relative=True))
    assert found.drop == pytest.approx(relative) and "bootstrap" in found.method


def test_perplexity_is_always_relative() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(5, 15, 400)
    slight, much = before * (1 + rng.normal(0.002, 0.001, 400)), before * 1.2
    passed, failed = (judge(PERPLEXITY, "s", before, after, Budget(0.01)) for after in (slight, much))
    assert passed.status == "PASS" and passed.drop == pytest.approx(0.002, abs=5e-4)
    assert failed.status == "FAIL" and failed.drop == pytest.approx(0.2, abs=1e-6)


def test_a_metric_that_is_no_mean_is_bounded_by_the_bootstrap() -> None:
    before = np.random.default_rng(0).normal(0, 1, 300)
    found = judge(Spread(), "s", before, 0.9 * before, Budget(0.05))
    assert found.drop == pytest.approx(0.1 * before.std()) and found.method.endswith("(asymptotic)")
    assert found.status == "FAIL" and found.lower_bound < found.drop < found.upper_bound
    assert judge(Spread(), "s", before, 0.999 * before, Budget(0.05)).status == "PASS"


def test_without_confidence_the_point_estimate_decides() -> None:
    passed = judge(ACCURACY, "s", *right(100, 1), Budget(0.01, confidence=None))
    failed = judge(ACCURACY, "s", *right(100, 2), Budget(0.01, confidence=None))
    assert (passed.status, failed.status) == ("PASS", "FAIL")
    assert passed.upper_bound == passed.lower_bound == passed.drop and passed.confidence is None
    assert "no confidence" in passed.method


def test_identical_outcomes_on_few_items_prove_little() -> None:
    assert judge(ACCURACY, "s", *right(20), Budget(0.01)).status == "INCONCLUSIVE"
    assert judge(ACCURACY, "s", *right(4000), Budget(0.01)).status == "PASS"


def test_identical_outcomes_are_bounded_in_the_unit_of_the_budget() -> None:
    before, _ = right(1000, also=800)  # right on a fifth: a drop of 0.004 is a relative one of 0.02
    absolute, relative = (judge(ACCURACY, "s", before, before, Budget(0.01, relative=one)) for one in (False, True))
    assert absolute.status == "PASS" and relative.status == "INCONCLUSIVE"
    assert relative.upper_bound == pytest.approx(5 * absolute.upper_bound)


def test_identical_values_of_an_unbounded_metric_pass() -> None:
    before = np.linspace(1, 9, 50)
    found = judge(PERPLEXITY, "s", before, before.copy(), Budget(0.0))
    assert (found.status, found.drop, found.upper_bound) == ("PASS", 0.0, 0.0) and "identical" in found.method


def test_the_same_seed_gives_the_same_verdict() -> None:
    one, two = (judge(ACCURACY, "s", *right(wrong=30), Budget(0.01), seed=3) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("task", [ACCURACY, Spread(), PERPLEXITY], ids=["mean", "spread", "perplexity"])
def test_the_standard_error_is_that_of_repeated_draws(task: Task) -> None:
    rng, budget, n = np.random.default_rng(0), Budget(0.01), 200
    errors, drops = [], []
    for _ in range(200):
        before = rng.uniform(0.5, 1.5, n)
        after = before * rng.uniform(0.8, 1.0, n)
        drops.append(paired_drop(task, "s", before, after, budget))
        errors.append(drop_error(task, "s", before, after, budget))
    assert np.mean(errors) == pytest.approx(np.std(drops), rel=0.2)
