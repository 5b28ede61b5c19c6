"""How far a model's outputs are from the float model's, row by row: for what the search learns of a map beside its drop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from autoquant.profile.fisher import divergence
from autoquant.tasks.base import Task

KEPT_OUTPUTS = 512 * 2**20
"""Bytes of float outputs kept to measure the divergence of each trial; batches beyond are judged by the metric alone."""


@dataclass
class Divergence:
    """The float model's outputs by row, and the mean divergence of a model from them."""

    task: Task
    room: int = KEPT_OUTPUTS
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    found: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Row → (sum of its divergences, number of its outputs)."""

    def keep(self, rows: list[int], output: torch.Tensor, batch: Any) -> None:
        size = output.numel() * output.element_size()
        if self.room >= size or not self.outputs:
            self.room -= size
            self.outputs.update(zip(rows, output, strict=True))

    def compare(self, rows: list[int], output: torch.Tensor, batch: Any) -> None:
        mask = self.task.mask(batch) if self.task.positions else None
        for place, row in enumerate(rows):
            reference = self.outputs.get(row)
            if reference is None or reference.shape != output[place].shape:
                continue
            nats = divergence(output[place : place + 1], reference[None], self.task.output_kind)
            nats = nats if mask is None else nats[mask[place : place + 1]]
            self.found[row] = nats.sum().item(), nats.numel()

    def forget(self) -> None:
        """What was compared, of a map that failed half way, too."""
        self.found.clear()

    def mean(self, weights: Mapping[int, float] | None = None) -> tuple[float, float]:
        """(mean, standard error as an estimate of the mean of all rows) of what was compared since `forget`.

        The error is that of a ratio of two totals whose rows were read with probabilities of one over their weights
        (Särndal, Swensson and Wretman, "Model Assisted Survey Sampling", 1992, sections 2.8 and 5.6): 0 once all are read.

        Args:
            weights: row → how many rows it stands for; where there are none, all rows stand for equally many.
        """
        if not self.found:
            return 0.0, 0.0
        equal = self.task.rows("search") / len(self.found)
        weight = np.array([equal if weights is None else weights.get(row, 1.0) for row in self.found])
        nats, count = np.array(list(self.found.values()), dtype=np.float64).T
        total = max(1e-9, (weight * count).sum())
        mean = (weight * nats).sum() / total
        variance = (weight * (weight - 1) * (nats - mean * count) ** 2).sum() / total**2
        return float(mean), math.sqrt(max(variance, 0.0))
