"""How alike two texts are: Spearman's rank correlation with people's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from autoquant.artifacts import fingerprint
from autoquant.errors import DataError
from autoquant.models.heads import head_of
from autoquant.tasks.base import Batch
from autoquant.tasks.classification import PAIR_NAMES, TEXT_NAMES
from autoquant.tasks.clusters import CLUSTER_ROLE, clustered_pools, joined
from autoquant.tasks.data import numbers, read_columns, texts
from autoquant.tasks.dataset import DataTask
from autoquant.tasks.inputs import LONGEST, Inputs, longest_row, tokenise
from autoquant.tasks.outputs import Embedding, call
from autoquant.tasks.splitting import assign

ROLES = {
    "text": ("text1", *TEXT_NAMES, "sent1", "anchor"),
    "text_pair": ("text2", *PAIR_NAMES, "sent2", "positive"),
    "score": ("score", "similarity", "similarity_score", "label", "labels", "gold", "relatedness_score"),
    CLUSTER_ROLE: (),
}


class STS(DataTask):
    """Pairs of texts; an item's value is the model's similarity of a pair.

    With an embedding model, the rows of a split are its n first texts and then its n second texts, and a value is
    their cosine. With a classifier of one output (a cross-encoder), a row is a pair and a value its logit.
    """

    name = "sts"
    auto_class = "AutoModel"
    metrics = ("spearman",)
    mean_of_items = False

    @classmethod
    def auto_class_for(cls, architectures: Sequence[str]) -> str:
        heads = [head_of(name) for name in architectures]
        cross = any(head is not None and head.kind == "classifier" for head in heads)
        return "AutoModelForSequenceClassification" if cross else cls.auto_class

    def _build(self) -> Inputs:
        if self.facts.head == "classifier" and self.facts.labels != 1:
            raise DataError(f"--task sts needs an embedding model or one output, not {self.facts.labels} labels.")
        self.crossencoder = self.facts.head == "classifier" and self.facts.labels == 1
        self.output_kind = self.facts.logits_kind if self.crossencoder else "embedding"
        self.bounds = None if self.crossencoder else (-1.0, 1.0)
        pairs, scores, clusters = self._read(self._need_data())
        test_pairs, test_scores, test_clusters = self._read(self.test_data) if self.test_data else (None, [], None)
        clusters = joined(clusters, len(pairs), test_clusters, len(test_pairs or ()))
        keyed = clustered_pools(_unordered(pairs), test_pairs and _unordered(test_pairs), clusters)
        chosen = assign(keyed, self.seed, self.sizes, "pairs")
        self._cluster(chosen, clusters)
        pairs, scores = pairs + (test_pairs or []), scores + test_scores
        self._gold = {split: np.array([scores[i] for i in index]) for split, index in chosen.items()}
        self._embedding = self._read_embedding()
        self.max_length = longest_row(self.processor, self.max_length, self._embedding.max_length or LONGEST)
        dealt = {split: [pairs[i] for i in index] for split, index in chosen.items()}
        if self.crossencoder:
            return tokenise(dealt, self.processor, self.max_length)
        halves = {split: [(a,) for a, _ in part] + [(b,) for _, b in part] for split, part in dealt.items()}
        return tokenise(halves, self.processor, self.max_length)

    def _read_embedding(self) -> Embedding:
        if "embedding" not in self.settings:
            plain = self.crossencoder or self._forward is not None
            self.settings["embedding"] = (Embedding() if plain else Embedding.of(self.processor)).to_dict()
        return Embedding(**self.settings["embedding"])

    def _read(self, source: str) -> tuple[list[tuple[str, str]], list[float], list[Any] | None]:
        columns = read_columns(source, ROLES, optional=[CLUSTER_ROLE], columns=self.columns)
        first, second = (texts(columns[role], role, source) for role in ("text", "text_pair"))
        scores = numbers(columns["score"], "score", source)
        return list(zip(first, second, strict=True)), scores, columns.get(CLUSTER_ROLE)

    def items(self, split: str) -> int:
        return len(self._gold[split])

    def rows_of(self, split: str, items: Sequence[int]) -> Sequence[int]:
        """A pair is one row of a cross-encoder; for embeddings its two texts are n rows apart."""
        return items if self.crossencoder else [*items, *(self.items(split) + item for item in items)]

    def _run(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.crossencoder:
            return call(model, batch, "logits")
        return self._embedding(call(model, batch, "last_hidden_state"), batch)

    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None) -> np.ndarray:
        output = self._finite(split, reduced).double()
        if self.crossencoder:
            return output[:, 0].numpy()
        unit = nn.functional.normalize(output, dim=1)
        first, second = unit.chunk(2)
        return (first * second).sum(1).clamp(-1, 1).numpy()

    def aggregate(self, split: str, values: np.ndarray, index: np.ndarray | None = None) -> float:
        """Spearman's correlation in [-1, 1]; 0 when all values (or all scores) are equal."""
        from scipy.stats import rankdata  # more than half a second, of every start otherwise

        gold = self._gold[split]
        if index is not None:
            values, gold = values[index], gold[index]
        ranks, gold_ranks = rankdata(values), rankdata(gold)
        ranks, gold_ranks = ranks - ranks.mean(), gold_ranks - gold_ranks.mean()
        spread = np.sqrt((ranks @ ranks) * (gold_ranks @ gold_ranks))
        return float(ranks @ gold_ranks / spread) if spread > 0 else 0.0

    def fingerprint(self) -> str:
        return fingerprint([super().fingerprint(), {split: gold.tolist() for split, gold in self._gold.items()}])


def _unordered(pairs: Sequence[tuple[str, str]]) -> list[frozenset[str]]:
    """Keys under which (a, b) and (b, a) are one pair."""
    return [frozenset(pair) for pair in pairs]
