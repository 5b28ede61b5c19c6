"""Without labels: how far a model's outputs move from those of the float32 model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.errors import DataError, UsageError, nearest
from autoquant.models.heads import head_of
from autoquant.tasks.base import SPLITS, Batch
from autoquant.tasks.causal_lm import judged_positions
from autoquant.tasks.classification import PAIR_NAMES, TEXT_NAMES, top
from autoquant.tasks.clusters import CLUSTER_ROLE, clustered_pools, joined
from autoquant.tasks.data import read_columns, texts
from autoquant.tasks.dataset import DataTask
from autoquant.tasks.docstrings import split_pairs
from autoquant.tasks.image_classification import image_rows
from autoquant.tasks.images import read_sources
from autoquant.tasks.inputs import LONGEST, Inputs, longest_row, tokenise
from autoquant.tasks.outputs import Embedding, call, finite, no_cache
from autoquant.tasks.splitting import assign
from autoquant.tasks.windows import window_length, window_rows

METRICS = {
    "embedding": ("cosine",),
    "classifier": ("agreement", "kl"),
    "causal-lm": ("agreement", "kl"),
    None: ("cosine", "agreement", "kl"),
}
"""Head of the model → metrics that make sense for it, the default first."""

DOCSTRING_TOKENS = 128
"""Longest row of the embedded docstrings, summary and rest in one."""

ROLES = {"text": TEXT_NAMES, "text_pair": PAIR_NAMES, CLUSTER_ROLE: ()}


class Fidelity(DataTask):
    """Rows and items are texts, pairs, windows of tokens (a language model) or images; labels are not read.

    Metrics, all against the float32 model's output for the same row, which must be passed as `reference`:
        agreement: 1 where the top label is the same, else 0; for a language model the share of positions with the
            same top token.
        cosine: of the two embeddings, cut to [0, 1].
        kl: Kullback-Leibler divergence from the float32 model's distribution, in nats, lower is better; for a language
            model at one position a row, the last one judged (all positions of all rows would not fit in memory).
    The float32 model has exactly 1, 1 and 0.
    """

    name = "fidelity"
    auto_class = "AutoModel"
    metrics = ("agreement", "cosine", "kl")

    @classmethod
    def auto_class_for(cls, architectures: Sequence[str]) -> str:
        return next((head.auto_class for name in architectures if (head := head_of(name))), cls.auto_class)

    def _pick_metric(self, metric: str | None) -> str:
        valid = METRICS[self.facts.head]
        if metric is not None and metric not in valid:
            raise DataError(f"--task fidelity of this model has no metric '{metric}'.{nearest(metric, valid)}")
        return metric or valid[0]

    def _build(self) -> Inputs:
        self.higher_is_better = self.metric != "kl"
        self.bounds = None if self.metric == "kl" else (0.0, 1.0)
        self.output_kind = "embedding" if self.metric == "cosine" else self.facts.logits_kind
        self.positions = self.facts.head == "causal-lm"
        self._embedding = self._read_embedding()
        if self.facts.images:
            sources, served = read_sources(self._need_data(), self.test_data, self.columns, labelled=False)
            return image_rows(sources, assign(served, self.seed, self.sizes, "images"), self.processor)
        if self.positions:
            self.max_length = window_length(self.processor, self.max_length)
            return window_rows(
                self.data, self.test_data, self.processor, self.columns, self.seed, self.sizes, self.max_length
            )
        default = DOCSTRING_TOKENS if self.data is None else self._embedding.max_length or LONGEST
        self.max_length = longest_row(self.processor, self.max_length, default)
        return tokenise(self._texts(), self.processor, self.max_length)

    def _read_embedding(self) -> Embedding:
        if "embedding" not in self.settings:
            plain = self.metric != "cosine" or self.facts.images or self._forward is not None
            self.settings["embedding"] = (Embedding() if plain else Embedding.of(self.processor)).to_dict()
        return Embedding(**self.settings["embedding"])

    def _texts(self) -> dict[str, list[tuple[str, ...]]]:
        if self.data is None:
            dealt = split_pairs(self.seed, self.sizes)
            return {split: [(f"{pair.query} {pair.document}",) for pair in dealt[split]] for split in SPLITS}
        rows, clusters = self._read(self.data)
        test, test_clusters = self._read(self.test_data) if self.test_data else (None, None)
        clusters = joined(clusters, len(rows), test_clusters, len(test or ()))
        chosen = assign(clustered_pools(rows, test, clusters), self.seed, self.sizes, "texts")
        self._cluster(chosen, clusters)
        every = rows + (test or [])
        return {split: [every[i] for i in index] for split, index in chosen.items()}

    def _read(self, source: str) -> tuple[list[tuple[str, ...]], list[Any] | None]:
        if Path(source).suffix.casefold() == ".txt":
            return [(line,) for line in read_columns(source, {"text": ("text",)})["text"]], None
        columns = read_columns(source, ROLES, optional=["text_pair", CLUSTER_ROLE], columns=self.columns)
        parts = [texts(columns[role], role, source) for role in ("text", "text_pair") if role in columns]
        return list(zip(*parts, strict=True)), columns.get(CLUSTER_ROLE)

    def _run(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.metric == "cosine":
            return self._embedding(call(model, batch, "last_hidden_state"), batch)
        return call(model, batch, "logits", **(no_cache(model) if self.positions else {}))

    def reduce(self, output: Tensor, batch: Batch) -> Tensor:
        """Of a language model: the top token of every judged position (rows, positions - 1), or for `kl` the logits of
        the last judged one (rows, vocabulary). Of any other model the output itself."""
        if not self.positions:
            return output
        judged = output[:, :-1]
        finite(judged[:, -1], len(output))  # the top of a row of NaN would look like a token
        return judged[:, -1] if self.metric == "kl" else judged.argmax(-1)

    def mask(self, batch: Batch) -> Tensor | None:
        return judged_positions(batch) if self.positions else None

    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None) -> np.ndarray:
        """Raises UsageError without `reference`: a model compared with itself would always pass."""
        if reference is None:
            raise UsageError("--task fidelity compares with the float32 model: pass its kept outputs as reference=.")
        ours, theirs = self._finite(split, reduced), self._finite(split, reference)
        if self.metric == "cosine":
            return _cosine(ours, theirs)
        if self.metric == "kl":
            return _kl(ours, theirs)
        if self.positions:
            return (ours == theirs).double().mean(1).numpy()
        return (top(ours) == top(theirs)).astype(np.float64)


def _cosine(ours: Tensor, theirs: Tensor) -> np.ndarray:
    """(rows,) in [0, 1]; exactly 1 for equal rows, which rounding would not give."""
    cosine = nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=1).clamp(0, 1)
    return torch.where((ours == theirs).all(1), 1.0, cosine).numpy()


def _kl(ours: Tensor, theirs: Tensor) -> np.ndarray:
    """(rows,) in nats, exactly 0 for equal rows. One logit a row is a yes/no."""
    if ours.shape[1] == 1:
        ours, theirs = (torch.cat([logit, torch.zeros_like(logit)], 1) for logit in (ours, theirs))
    log_p, log_q = theirs.double().log_softmax(1), ours.double().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).clamp(min=0).numpy()
