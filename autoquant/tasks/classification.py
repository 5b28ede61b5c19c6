"""Classify texts or pairs of texts: accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from autoquant.artifacts import fingerprint
from autoquant.errors import DataError
from autoquant.tasks.clusters import CLUSTER_ROLE, clustered_pools, joined
from autoquant.tasks.data import read_columns, texts
from autoquant.tasks.dataset import DataTask
from autoquant.tasks.facts import label_numbers
from autoquant.tasks.inputs import Inputs, longest_row, tokenise
from autoquant.tasks.splitting import assign

TEXT_NAMES = ("text", "sentence", "sentence1", "premise", "question", "question1", "content", "review", "document")
PAIR_NAMES = ("text2", "sentence2", "hypothesis", "question2", "passage", "text_pair")
ROLES = {
    "text": TEXT_NAMES,
    "label": ("label", "labels", "class", "category", "target", "sentiment", "gold_label", "y"),
    "text_pair": PAIR_NAMES,
    CLUSTER_ROLE: (),
}


class Classification(DataTask):
    """Rows and items are the texts (or pairs); an item's value is 1 where the model's label is right, else 0."""

    name = "classification"
    auto_class = "AutoModelForSequenceClassification"
    metrics = ("accuracy",)

    def _build(self) -> Inputs:
        self.output_kind = self.facts.logits_kind
        rows, labels, clusters = self._read(self._need_data())
        test_rows, test_labels, test_clusters = self._read(self.test_data) if self.test_data else (None, [], None)
        clusters = joined(clusters, len(rows), test_clusters, len(test_rows or ()))
        chosen = assign(clustered_pools(rows, test_rows, clusters), self.seed, self.sizes, "texts")
        self._cluster(chosen, clusters)
        rows, labels = rows + (test_rows or []), labels + test_labels
        self._labels = {split: np.array([labels[i] for i in index]) for split, index in chosen.items()}
        self.max_length = longest_row(self.processor, self.max_length)
        return tokenise({s: [rows[i] for i in index] for s, index in chosen.items()}, self.processor, self.max_length)

    def _read(self, source: str) -> tuple[list[tuple[str, ...]], list[int], list[Any] | None]:
        columns = read_columns(source, ROLES, optional=["text_pair", CLUSTER_ROLE], columns=self.columns)
        parts = [texts(columns[role], role, source) for role in ("text", "text_pair") if role in columns]
        labels = label_numbers(columns["label"], self.facts, source)
        return list(zip(*parts, strict=True)), labels, columns.get(CLUSTER_ROLE)

    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None) -> np.ndarray:
        return right(self._finite(split, reduced), self._labels[split])

    def fingerprint(self) -> str:
        return fingerprint([super().fingerprint(), {split: labels.tolist() for split, labels in self._labels.items()}])


def right(logits: Tensor, labels: np.ndarray) -> np.ndarray:
    """1.0 where the top label (of one logit: its sign) is the given one, else 0.0; (rows,) float64.

    Raises:
        DataError: a label that the model has no output for.
    """
    width = logits.shape[1]
    if labels.max() >= max(width, 2):
        raise DataError(f"The data has the label {labels.max()}, but the model has {width} outputs. Check the labels.")
    return (top(logits) == labels).astype(np.float64)


def top(logits: Tensor) -> np.ndarray:
    """The label of every row of (rows, labels); with one logit a row, 1 where it is positive."""
    found: Any = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1)
    return found.long().numpy()
