"""A split is read in batches that fit the processor, and to the same end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoquant.evaluation import TOKENS, evaluate_split
from autoquant.tasks.base import Batch
from tests.test_trial import Sign

LENGTHS = (3000, 1500, 600, 500, 500, *[100] * 40, *[1] * 55)


class Long(Sign):
    """Rows of very different lengths; remembers which were asked for together."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def lengths(self, split: str) -> list[int]:
        return list(LENGTHS)

    def batch(self, split: str, rows: list[int]) -> Batch:  # type: ignore[override]
        self.asked.append(list(rows))
        return super().batch(split, rows)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 40.5


@pytest.mark.parametrize("size, most, count", [(8, 8, 16), (64, 36, 7)])
def test_long_rows_are_read_few_at_a_time(size: int, most: int, count: int) -> None:
    task = Long()
    found = evaluate_split(Centred(), task, "search", batch_size=size)
    assert sorted(row for rows in task.asked for row in rows) == list(range(len(LENGTHS)))
    assert all(len(rows) == 1 or len(rows) * max(LENGTHS[row] for row in rows) <= TOKENS for rows in task.asked)
    assert max(map(len, task.asked)) == most, "short rows are as many as were asked for"
    assert len(task.asked) == count, "and no batch is cut smaller than need be"
    assert torch.equal(torch.as_tensor(found.values), torch.tensor([float(row > 40) for row in range(len(LENGTHS))]))
    assert found.batch_size == size
