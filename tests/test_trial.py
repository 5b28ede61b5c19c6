"""How a map is judged on the search split."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoquant.certify.judge import judge
from autoquant.divergence import Divergence
from autoquant.evaluation import SETTLED_CALLS, time_models
from autoquant.profile.run import POSITIONS
from autoquant.racing import expected_margin
from autoquant.search import Outcome
from autoquant.search.race import FIRST, Order
from autoquant.session import Progress
from autoquant.tasks.base import Batch, Task
from autoquant.trial import ANCHOR_MS, ROUNDS, ROUNDS_BESIDE, Judge, make_judge
from autoquant.values import Budget, Candidate

ROWS = 100


class Sign(Task):
    """Is the model's output positive? It ought to be."""

    name = "sign"
    metric = "accuracy"
    output_kind = "bernoulli"

    def rows(self, split: str) -> int:
        return ROWS

    items = rows

    def lengths(self, split: str) -> Sequence[int]:
        return [1] * ROWS

    def batch(self, split: str, rows: Sequence[int]) -> Batch:
        return {"x": torch.tensor(rows, dtype=torch.float32)[:, None], "rows": rows}

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])

    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None) -> np.ndarray:
        return (reduced[:, 0] > 0).double().numpy()

    def example(self, batch_size: int, seq_len: int | None) -> Batch:
        return self.batch("search", range(batch_size))


class Threshold(nn.Module):
    """Wrong on the first `wrong` rows."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        return x - self.wrong + 0.5


def judge_of(
    wrong: int, budget: Budget, race: bool = False, task: Task | None = None, batch_size: int = 2, float_ms: float = 1.0,
    rounds: int = ROUNDS,
) -> Judge:  # fmt: skip
    session: Any = SimpleNamespace(
        settings=SimpleNamespace(eval_batch_size=32, trials=1, seed=0, race=race), batch_size=batch_size, task=task or Sign(),
        budget=budget, model=Threshold(0), seq_len=None, progress=Progress(quiet=True),
        assembler=SimpleNamespace(assemble=lambda layers, base: Threshold(wrong)), runtime=SimpleNamespace(rest_seconds=0.0),
        inventory=SimpleNamespace(layers=()),
    )  # fmt: skip
    price: Any = SimpleNamespace(model_ms={"float32": float_ms})
    return make_judge(session, price, lambda done, total: None, rounds)


def evaluated(wrong: int, budget: Budget, race: bool = False, task: Task | None = None) -> Outcome:
    return judge_of(wrong, budget, race, task)("bfloat16", {})


@pytest.mark.parametrize("wrong", [0, 1, 2, 3])
def test_a_drop_of_exactly_the_budget_is_within_it_as_it_is_for_the_certifier(wrong: int) -> None:
    """1 - 0.99 is more than 0.01 in floats."""
    budget = Budget(0.01, confidence=None)
    found = evaluated(wrong, budget)
    before, after = np.ones(ROWS), np.r_[np.zeros(wrong), np.ones(ROWS - wrong)]
    assert found.drop == judge(Sign(), "search", before, after, budget).drop == pytest.approx(wrong / ROWS)
    assert (found.margin <= 0) == (judge(Sign(), "search", before, after, budget).status == "PASS") == (wrong <= 1)


def test_the_margin_is_that_of_the_bound_that_is_to_be_expected() -> None:
    one, two = (evaluated(2, Budget(0.05, confidence=level)) for level in (0.8, 0.95))
    assert one.drop == two.drop == pytest.approx(0.02) and one.error == pytest.approx(np.sqrt(0.02 * 0.98 / ROWS))
    assert one.margin == pytest.approx(0.02 + 0.8416 * one.error - 0.05, abs=1e-5)
    assert two.margin == pytest.approx(0.02 + 1.6449 * two.error - 0.05, abs=1e-5)
    assert evaluated(0, Budget(0.05)).divergence == 0 < one.divergence and one.items == ROWS


def test_the_margin_is_a_plain_number_whatever_the_confidence() -> None:
    """A candidate's `feasible` goes into the report, which takes no NumPy scalars."""
    for confidence in (0.95, None):
        margin = expected_margin(0.02, 0.001, 100, 100, Budget(0.01, confidence=confidence))
        assert type(margin) is float
        feasible = Candidate(0, "map", "proposed", "float32", {}, margin=margin).feasible
        assert feasible is False


def test_a_race_gives_the_answer_of_the_whole_split_from_fewer_items() -> None:
    broken, whole = evaluated(60, Budget(0.05), race=True), evaluated(60, Budget(0.05))
    assert (broken.margin > 0) == (whole.margin > 0) and broken.items < whole.items == ROWS


def test_a_race_to_the_end_is_the_whole_evaluation() -> None:
    for wrong in (0, 4):
        raced, whole = evaluated(wrong, Budget(0.05), race=True), evaluated(wrong, Budget(0.05))
        if raced.items == ROWS:
            assert (raced.drop, raced.error, raced.margin) == (whole.drop, whole.error, whole.margin)
        assert (raced.margin <= 0) == (whole.margin <= 0)


def test_a_race_reads_what_can_change_and_is_about_the_whole_split() -> None:
    """The rows near 0 change first; the many behind them are told from them and from a few by chance."""
    judged = judge_of(4, Budget(0.2), race=True)
    raced, whole = judged("bfloat16", {}), evaluated(4, Budget(0.2))
    assert judged.course.order.places is not None
    assert set(range(4)) <= set(judged.course.order.items[:32].tolist())
    assert raced.items < ROWS and raced.margin <= 0 and whole.margin <= 0
    assert raced.drop == pytest.approx(whole.drop, abs=0.02)
    again = judge_of(4, Budget(0.2), race=True)("bfloat16", {})
    assert (again.drop, again.margin, again.items) == (raced.drop, raced.margin, raced.items), "a resumed run"


def test_divergences_of_the_items_read_stand_for_the_whole_split() -> None:
    judged = judge_of(2, Budget(0.2), race=True)
    read, nats = judged("bfloat16", {}), evaluated(2, Budget(0.2)).divergence
    few, items = judged.measure("bfloat16", {})
    assert read.items < ROWS and FIRST <= items <= ROWS and few == pytest.approx(nats, rel=0.6)
    assert judged("bfloat16", {}).divergence == read.divergence == pytest.approx(nats, rel=0.6)


class Doubled(Sign):
    """Each item is judged by two rows, and which ones is not said: all rows are needed before the first item."""

    def items(self, split: str) -> int:
        return ROWS // 2

    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None) -> np.ndarray:
        return super().score(split, reduced)[::2]


@pytest.mark.parametrize("wrong", [0, 2, 50])
def test_items_whose_rows_are_in_already_are_judged_without_running_them_again(wrong: int) -> None:
    raced, whole = (evaluated(wrong, Budget(0.05), race=race, task=Doubled()) for race in (True, False))
    assert (raced.margin <= 0) == (whole.margin <= 0) and raced.divergence == whole.divergence
    if raced.items == whole.items:
        assert raced.drop == whole.drop


def test_a_map_that_fails_half_way_leaves_nothing_to_the_next() -> None:
    judged = judge_of(3, Budget(0.05))
    first = judged("bfloat16", {}).divergence
    judged.against.found[0] = 1e9, 7  # as a map leaves them that raised
    assert judged("bfloat16", {}).divergence == first > 0


def test_the_error_of_a_divergence_is_what_other_items_would_have_given() -> None:
    """Over many orders of the items, a mean from some is off by what its error says."""
    rng, task = np.random.default_rng(0), Sign()
    nats = rng.lognormal(size=ROWS)
    off, errors = [], []
    for seed in range(400):
        order = Order.by_fragility(-nats + rng.normal(size=ROWS), seed) if seed % 2 else Order.by_chance(ROWS, seed)
        count = 60
        weights = order.weights(count)
        weights *= ROWS / weights.sum()
        rows = order.items[:count].tolist()
        judged = Divergence(task, found={row: (nats[row], 1) for row in rows})
        mean, error = judged.mean(dict(zip(rows, weights, strict=True)))
        off.append(mean - nats.mean())
        errors.append(error)
    assert 0.7 < np.sqrt(np.mean(np.square(errors)) / np.mean(np.square(off))) < 1.4
    everything = Divergence(task, found={row: (nats[row], 1) for row in range(ROWS)})
    assert everything.mean() == (pytest.approx(nats.mean()), 0.0) and Divergence(task).mean() == (0.0, 0.0)


def test_the_float_model_itself_is_not_read() -> None:
    """It drops nothing by definition; only how long it takes as it is served is asked."""
    found = judge_of(30, Budget(0.05), race=True)("float32", {"a": "float32"})
    assert (found.items, found.drop, found.error, found.divergence) == (0, 0.0, 0.0, 0.0)
    assert found.margin == pytest.approx(-0.05) and found.ms > 0


@pytest.mark.parametrize(("float_ms", "rows"), [(ANCHOR_MS / 2, 16), (ANCHOR_MS, 16), (4 * ANCHOR_MS, 4), (1e6, 1)])
def test_maps_are_timed_beside_few_rows_of_a_slow_float_model(
    float_ms: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And their milliseconds are told beside those of the float model on the whole batch."""
    asked: list[int] = []

    class Watched(Sign):
        def example(self, batch_size: int, seq_len: int | None) -> Batch:
            asked.append(batch_size)
            return super().example(batch_size, seq_len)

    def times(models: dict[str, Any], **how: Any) -> dict[str, tuple[float, float]]:
        known = {"whole": 80.0, "anchor": 80.0 * rows / 16, "map": 20.0}
        return {name: (known[name], 1.0) for name in models}

    monkeypatch.setattr("autoquant.trial.time_models", times)
    judged = judge_of(0, Budget(0.05), task=Watched(), batch_size=16, float_ms=float_ms)
    assert set(asked) == {16, rows}
    assert judged("bfloat16", {}).ms == pytest.approx(float_ms * 20 / 80) and judged("bfloat16", {}).noise == 1 / 20


@pytest.mark.parametrize("rounds", [ROUNDS, ROUNDS_BESIDE])
def test_a_map_is_timed_in_no_more_rounds_than_were_asked_for(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def times(models: dict[str, Any], **how: Any) -> dict[str, tuple[float, float]]:
        found.append(how["rounds"])
        return dict.fromkeys(models, (1.0, 0.0))

    judged = judge_of(0, Budget(0.05), rounds=rounds)
    monkeypatch.setattr("autoquant.trial.time_models", times)
    judged("bfloat16", {})
    assert found == [rounds]


@pytest.mark.parametrize(("length", "few"), [(1, ROWS), (POSITIONS // 8, 8), (POSITIONS - 1, 2), (POSITIONS, 1)])
def test_where_every_token_is_an_output_a_refinement_reads_few_rows(length: int, few: int) -> None:
    class Tokens(Sign):
        positions = True

        def lengths(self, split: str) -> Sequence[int]:
            return [length] * ROWS

    judged = judge_of(2, Budget(0.05), task=Tokens())
    assert judged.few == few and sum(map(len, judged.replay.plan)) == few
    assert judge_of(2, Budget(0.05)).few == ROWS


def test_what_is_slow_is_timed_in_every_third_round() -> None:
    calls: list[str] = []
    models = {name: lambda name=name: calls.append(name) for name in ("map", "anchor")}
    assert set(time_models(models, rounds=5, warmup=1, seldom={"anchor"})) == {"map", "anchor"}
    assert calls == ["map", "anchor", *["map", "anchor", "map", "map"], "map", "anchor", "map"]


def test_a_timing_ends_when_every_median_is_known_well_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of the test's own: one model takes 1 s at every call, another 1 or 3 s in turns."""
    now, calls = [0.0], {"steady": 0, "restless": 0}
    monkeypatch.setattr("autoquant.evaluation.time.perf_counter", lambda: now[0])

    def call(name: str) -> None:
        now[0] += 1.0 if name == "steady" else 1.0 + 2.0 * (calls[name] % 2)
        calls[name] += 1

    models = {name: lambda name=name: call(name) for name in calls}
    time_models({"steady": models["steady"]}, rounds=25, warmup=0, max_seconds=1e9, settled=0.01)
    assert calls["steady"] == SETTLED_CALLS
    time_models({"steady": models["steady"]}, rounds=25, warmup=0, max_seconds=1e9)
    assert calls["steady"] == SETTLED_CALLS + 25
    time_models(models, rounds=25, warmup=0, max_seconds=1e9, settled=0.01)
    assert calls["restless"] == 25
