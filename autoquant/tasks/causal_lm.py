"""Predict the next token: perplexity."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.tasks.base import Batch
from autoquant.tasks.dataset import DataTask
from autoquant.tasks.inputs import Inputs
from autoquant.tasks.outputs import call, no_cache
from autoquant.tasks.windows import window_length, window_rows


class CausalLM(DataTask):
    """Rows and items are windows of tokens; an item's value is the mean negative log likelihood of its tokens, in nats.

    The metric is exp(mean of the values). A window's first token is given, its last logits are not judged.
    """

    name = "causal-lm"
    auto_class = "AutoModelForCausalLM"
    metrics = ("perplexity",)
    higher_is_better = False
    mean_of_items = False
    bounds = None
    relative = True
    positions = True
    batch_size = 1

    def _build(self) -> Inputs:
        self.max_length = window_length(self.processor, self.max_length)
        return window_rows(
            self.data, self.test_data, self.processor, self.columns, self.seed, self.sizes, self.max_length
        )

    def _run(self, model: nn.Module, batch: Batch) -> Tensor:
        return call(model, batch, "logits", **no_cache(model))

    def reduce(self, output: Tensor, batch: Batch) -> Tensor:
        """(rows, positions, vocabulary) → mean negative log likelihood (rows, 1), in nats."""
        ids = batch["input_ids"].to(output.device)
        # Row by row: the softmax of a whole batch would double the largest tensor there is.
        rows = [nn.functional.cross_entropy(logits[:-1], row[1:]) for logits, row in zip(output, ids, strict=True)]
        return torch.stack(rows)[:, None]

    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None) -> np.ndarray:
        return self._finite(split, reduced)[:, 0].double().numpy()

    def aggregate(self, split: str, values: np.ndarray, index: np.ndarray | None = None) -> float:
        return float(np.exp(np.mean(values if index is None else values[index])))

    def mask(self, batch: Batch) -> Tensor:
        """True where the next token is known, that is everywhere but at the last position."""
        return judged_positions(batch)


def judged_positions(batch: Batch) -> Tensor:
    """(rows, positions) True except at the last position of each row."""
    mask = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    mask[:, -1] = False
    return mask
