"""Find the smoothing of a model: where it can be scaled, and by how much, on a sample of the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.evaluation import device_of
from autoquant.smoothing.find import find_pairs
from autoquant.smoothing.strength import choose_exponents, watched
from autoquant.tasks.base import Task, batches, some_batches, to_device
from autoquant.values import Layer, Smoothing

TOKENS = 4096
"""Calibration tokens that are looked at."""
PROOF_ROWS = 2
"""Rows on which it is proved that a scaling changes nothing."""


@dataclass(frozen=True)
class Found:
    """The smoothing of a model.

    Attributes:
        smoothing: the scalings that pay.
        pairs: places where a scaling would change nothing.
        error_left: median share of the int8 error that the scalings leave; 1 if there are none.
    """

    smoothing: tuple[Smoothing, ...]
    pairs: int
    error_left: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "smoothing": [scaling.to_dict() for scaling in self.smoothing],
            "pairs": self.pairs,
            "error_left": self.error_left,
        }


def find_smoothing(
    model: nn.Module, task: Task, layers: Sequence[Layer], *, batch_size: int = 16, seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:  # fmt: skip
    """The scalings of a float32 model's channels that make int8 products of its layers more exact."""

    def forward(model: nn.Module, rows: Sequence[int]) -> Tensor:
        return task.forward(model, to_device(task.batch("calibration", rows), device_of(model)))

    plan = some_batches(batches(task, "calibration", batch_size), task, TOKENS, seed)
    pairs = find_pairs(model, layers, lambda model: forward(model, plan[0][:PROOF_ROWS]))
    with torch.inference_mode():
        with watched(model, pairs, len(plan)) as inputs:
            for number, rows in enumerate(plan if pairs else []):
                forward(model, rows)
                progress(number + 1, len(plan))
        chosen = [choose_exponents(model, pair, inputs[pair.source]) for pair in pairs]
    paying = [(scaling, left) for scaling, left in chosen if any(scaling.exponents)]
    return Found(tuple(scaling for scaling, _ in paying), len(pairs), median([left for _, left in paying] or [1.0]))
