"""What a task is: data in three disjoint splits, a forward pass, and a value for every item.

To bring a task of your own (for a model outside transformers, say), subclass `Task`, fill `splits` and implement
`forward` and `score`; everything else in autoquant works with it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.artifacts import fingerprint
from autoquant.errors import UsageError

SPREAD = 4
"""Batches that a sample of tokens comes from, at least."""
IMAGE_TOKENS = 64
"""What an image counts for, where rows have no length in tokens."""
SPLITS = ("calibration", "search", "certification")
Batch = Mapping[str, Any]
"""Arguments of one forward pass. Tensors are moved to the model's device; key `rows` holds the row numbers."""


class Task(ABC):
    """One way to judge a model.

    A split consists of **rows** (model inputs: a text, a pair, an image, a window of tokens) and of **items** (what is
    judged: a query, a pair, an image, a window). `forward` turns a batch of rows into the model's output, `reduce`
    shrinks that to what must be kept of each row, `score` turns all kept rows of a split into one value an item.

    Attributes:
        name: the word behind --task.
        metric: name of the metric.
        higher_is_better: direction of the metric.
        mean_of_items: whether the metric is the mean of the item values (accuracy, nDCG); otherwise `aggregate`
            computes it (Spearman) and bounds on its drop are asymptotic.
        bounds: (lowest, highest) an item value can have, or None if unbounded.
        relative: whether a drop is by nature a ratio (perplexity).
        output_kind: `softmax` (rows of logits), `bernoulli` (logits of independent yes/no), `embedding` or
            `regression` (real vectors).
        positions: True when every position of the output is an output of its own (a causal language model).
        batch_size: rows of the batch that latency is measured with, unless the user says otherwise.
        auto_class: the transformers class that loads a model for this task (see `auto_class_for`).
    """

    name: ClassVar[str]
    auto_class: ClassVar[str] = "AutoModel"
    metric: str
    higher_is_better: bool = True
    mean_of_items: bool = True
    bounds: tuple[float, float] | None = (0.0, 1.0)
    relative: bool = False
    output_kind: str = "softmax"
    positions: bool = False
    batch_size: int = 8

    @abstractmethod
    def rows(self, split: str) -> int:
        """Number of model inputs in `split`."""

    @abstractmethod
    def items(self, split: str) -> int:
        """Number of judged items in `split`."""

    def rows_of(self, split: str, items: Sequence[int]) -> Sequence[int]:
        """The rows that these items are judged by: their own, where an item is a row; else all rows, unless a task says."""
        return items if self.items(split) == self.rows(split) else range(self.rows(split))

    @abstractmethod
    def batch(self, split: str, rows: Sequence[int]) -> Batch:
        """The model inputs of these rows, padded to the longest of them."""

    @abstractmethod
    def lengths(self, split: str) -> Sequence[int]:
        """Length of each row (tokens, or 1 for images); batches are made of rows of like length."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's output, float32 and differentiable: (rows, dim); (rows, positions, vocabulary) if `positions`."""

    def reduce(self, output: Tensor, batch: Batch) -> Tensor:
        """What must be kept of each row to score it: (rows, …). The output itself unless that is too large."""
        return output

    @abstractmethod
    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None) -> np.ndarray:
        """One value an item, float64 (items,), from the kept rows of the whole split in row order.

        `reference` is the same of the float32 model (needed by tasks that compare with it).
        """

    def aggregate(self, split: str, values: np.ndarray, index: np.ndarray | None = None) -> float:
        """The metric from item values; `index` picks items (with repetition) for resampling."""
        return float(np.mean(values if index is None else values[index]))

    def clusters(self, split: str) -> np.ndarray | None:
        """(items,) number of the cluster that each item belongs to; None: no two items have to do with each other.

        Items of one cluster (questions about one passage) may succeed or fail together; bounds count clusters then.
        """
        return None

    def digests(self, split: str) -> Sequence[str]:
        """A short hash of each row's content, by which data that were certified on before are recognised.

        Here one for the whole split; it sees less than the hashes of rows, which tasks of data files have.
        """
        return [fingerprint([self.name, split, self.describe()])]

    def mask(self, batch: Batch) -> Tensor | None:
        """(rows, positions) True where an output counts, for tasks with `positions`; None: all count."""
        return None

    @abstractmethod
    def example(self, batch_size: int, seq_len: int | None) -> Batch:
        """A batch of real inputs of exactly this shape, for timing: (batch_size, seq_len); no padding in it."""

    @property
    def seq_len(self) -> int | None:
        """Typical length of a row, for timing; None for images."""
        return None

    @classmethod
    def auto_class_for(cls, architectures: Sequence[str]) -> str:
        """`auto_class` for a model whose config names these architectures; most tasks take one class only."""
        return cls.auto_class

    def spec(self) -> dict[str, Any]:
        """Plain JSON data from which a fresh process rebuilds precisely this task (`tasks.from_spec`).

        Raises:
            UsageError: the task cannot be rebuilt from plain data.
        """
        raise UsageError(f"{type(self).__name__} cannot be rebuilt in a fresh process: it has no spec().")

    def describe(self) -> dict[str, Any]:
        """What people read of the task, and a fingerprint of its data where there is one."""
        return {"task": self.name, "metric": self.metric, "items": {split: self.items(split) for split in SPLITS}}


def batches(task: Task, split: str, batch_size: int, rows: Sequence[int] | None = None) -> list[list[int]]:
    """Row numbers of the batches of a split: like lengths together, longest first (so memory peaks at once).

    Args:
        rows: those to take; None takes all.
    """
    chosen = np.arange(task.rows(split)) if rows is None else np.asarray(rows, int)
    order = chosen[np.argsort(-np.asarray(task.lengths(split))[chosen], kind="stable")]
    return [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]


def some_batches(
    plan: Sequence[list[int]], task: Task, tokens: int, seed: int, room: int = sys.maxsize
) -> list[list[int]]:
    """Batches of like rows of the calibration split with about `tokens` tokens in all, spread over short and long rows; all
    of them if fewer.

    A batch of more than `room` tokens is cut into several.
    """
    lengths = task.lengths("calibration")
    weight = 1 if max(lengths) > 1 else IMAGE_TOKENS
    share = tokens if weight * sum(lengths) <= tokens else tokens // SPREAD
    picked: list[list[int]] = []
    taken = 0
    for index in np.random.default_rng(seed).permutation(len(plan)):
        if taken >= tokens:
            break
        longest = weight * max(lengths[row] for row in plan[index])
        rows = plan[index][: max(1, share // longest)]
        taken += weight * sum(lengths[row] for row in rows)
        picked += cut(rows, lengths, room // weight)
    return picked


def cut(rows: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """A batch in parts of at most `room` tokens, padding counted; a longer row is a part by itself."""
    parts: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        if not parts or (len(parts[-1]) + 1) * longest > room:
            parts.append([])
            longest = lengths[row]
        parts[-1].append(row)
    return parts


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
