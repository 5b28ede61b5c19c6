"""What the shipped tasks share: one constructor, rows from `Inputs`, a spec that rebuilds them, a description."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from autoquant.errors import DataError, nearest
from autoquant.tasks.base import SPLITS, Batch, Task
from autoquant.tasks.clusters import numbered
from autoquant.tasks.data import absolute
from autoquant.tasks.facts import Facts
from autoquant.tasks.inputs import Inputs
from autoquant.tasks.outputs import call, finite
from autoquant.tasks.splitting import UNDIVIDED, check_sizes

Forward = Callable[[nn.Module, Batch], Tensor]
"""A forward pass of the user's own: (model, batch) → the tensor that the task judges, differentiable."""


class DataTask(Task):
    """A task on a data file (or folder, hub id, or the embedded docstrings).

    Args:
        data: path or hub id; None for the embedded docstrings, where the task can use them.
        processor: the model's tokenizer or image processor.
        columns: role → column name, or position in a file without header.
        seed: decides which rows go into which split.
        max_length: longest row in tokens (a causal language model: the window).
        sizes: split → number of items, for those that should not have the default size.
        metric: one of `metrics`; None for the first that fits the model.
        test_data: a second source that certification comes from alone.
        model: the model, or its `Facts`; needed where labels have names or the output is not clear from the task.
        forward: the user's own forward pass, for a model that does not follow transformers' conventions.
        undivided: all rows are for certification: the task only judges. Not for the embedded docstrings, which are always
            dealt by `seed`.
        settings: what an earlier construction read from the model's folder (`from_spec` passes it).

    Raises:
        DataError: data, columns, labels, sizes or the metric cannot be used.
    """

    metrics: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        data: str | Path | None,
        processor: Any,
        *,
        columns: Mapping[str, str | int] | None = None,
        seed: int = 0,
        max_length: int | None = None,
        sizes: Mapping[str, int] | None = None,
        metric: str | None = None,
        test_data: str | Path | None = None,
        model: nn.Module | Facts | None = None,
        forward: Forward | None = None,
        undivided: bool = False,
        settings: Mapping[str, Any] | None = None,
    ):
        self.data, self.test_data = absolute(data), absolute(test_data)
        self.processor, self.seed, self.max_length = processor, seed, max_length
        self.undivided = undivided and data is not None
        self.columns, self.sizes = dict(columns or {}), check_sizes(sizes) | (UNDIVIDED if self.undivided else {})
        self._clusters: dict[str, np.ndarray | None] = {}
        self.facts, self.settings = Facts.of(model), dict(settings or {})
        self._forward = forward
        self.metric = self._pick_metric(metric)
        self.inputs: Inputs = self._build()

    @abstractmethod
    def _build(self) -> Inputs:
        """Read the data, deal it into splits, keep what `score` needs, and return the rows."""

    def _pick_metric(self, metric: str | None) -> str:
        if metric is not None and metric not in self.metrics:
            raise DataError(f"--task {self.name} has no metric '{metric}'.{nearest(metric, self.metrics)}")
        return metric or self.metrics[0]

    def _need_data(self) -> str:
        if self.data is None:
            raise DataError(f"--task {self.name} needs data. Type: --data PATH")
        return self.data

    def rows(self, split: str) -> int:
        return self.inputs.rows(split)

    def items(self, split: str) -> int:
        return self.inputs.rows(split)

    def batch(self, split: str, rows: Sequence[int]) -> Batch:
        return self.inputs.batch(split, rows)

    def clusters(self, split: str) -> np.ndarray | None:
        return self._clusters.get(split)

    def digests(self, split: str) -> Sequence[str]:
        return self.inputs.digests(split)

    def _cluster(self, chosen: Mapping[str, Sequence[int]], clusters: Sequence[Hashable] | None) -> None:
        """Keep the clusters of the rows that were chosen for each split."""
        if clusters is not None:
            self._clusters = {split: numbered([[clusters[row]] for row in rows]) for split, rows in chosen.items()}

    def lengths(self, split: str) -> Sequence[int]:
        return self.inputs.lengths(split)

    def example(self, batch_size: int, seq_len: int | None = None) -> Batch:
        return self.inputs.example(batch_size, seq_len)

    @property
    def seq_len(self) -> int | None:
        return self.inputs.seq_len

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        if self._forward is not None:
            return self._forward(model, batch).float()
        return self._run(model, batch)

    def _run(self, model: nn.Module, batch: Batch) -> Tensor:
        return call(model, batch, "logits")

    def _finite(self, split: str, reduced: Tensor) -> Tensor:
        return finite(reduced.detach(), self.rows(split)).cpu()

    def spec(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "data": self.data,
            "test_data": self.test_data,
            "columns": self.columns,
            "seed": self.seed,
            "max_length": self.max_length,
            "sizes": {split: size for split, size in self.sizes.items() if size},
            "undivided": self.undivided,
            "metric": self.metric,
            "model": self.facts.to_dict(),
            "settings": self.settings,
            "own_forward": self._forward is not None,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """Hash of the rows of all splits and of what they are judged by."""
        return self.inputs.fingerprint()

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "data": Path(self.data).name if self.data else "docstrings",
            "test_data": Path(self.test_data).name if self.test_data else None,
            "columns": self.columns,
            "seed": self.seed,
            "items": {split: self.items(split) for split in SPLITS},
            "rows": {split: self.rows(split) for split in SPLITS},
            "typical_length": self.seq_len,
            "fingerprint": self.fingerprint(),
        }
