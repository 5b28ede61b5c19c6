"""How little it takes to change an item."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from autoquant.fragility import fragility

ROWS = 300


def task(score: Any) -> Any:
    return SimpleNamespace(score=lambda split, reduced, reference: score(reduced, reference))


def right(reduced: Tensor, reference: Tensor) -> np.ndarray:
    return (reduced.argmax(1) == 0).double().numpy()


def test_what_lies_near_a_decision_changes_first() -> None:
    logits = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0))
    first, others = logits[:, 0], logits[:, 1:].amax(1)
    found = fragility(task(right), "search", logits)
    assert found is not None and found.shape == (ROWS,)
    assert stats.spearmanr(found, -(first - others).abs()).statistic > 0.8
    assert stats.spearmanr(found, fragility(task(right), "search", 100 * logits + 3)).statistic > 0.99, "in any unit"
    assert (found == fragility(task(right), "search", logits)).all()


def test_where_all_items_move_noise_tells_nothing() -> None:
    output = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    cosine = task(lambda reduced, reference: torch.cosine_similarity(reduced, reference).double().numpy())
    assert fragility(cosine, "search", output) is None


def test_codes_and_a_single_row_have_no_noise() -> None:
    assert fragility(task(right), "search", torch.randint(0, 9, (ROWS, 4))) is None
    assert fragility(task(right), "search", torch.randn(1, 4)) is None
