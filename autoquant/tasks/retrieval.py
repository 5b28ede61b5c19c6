"""Find the documents that answer a query: nDCG@10 by the cosine of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from autoquant.artifacts import fingerprint
from autoquant.errors import DataError, reject_unknown
from autoquant.tasks.base import Batch
from autoquant.tasks.beir import Collection, read_collection
from autoquant.tasks.clusters import numbered
from autoquant.tasks.dataset import DataTask
from autoquant.tasks.docstrings import DOCUMENT_TOKENS, QUERY_TOKENS, split_pairs
from autoquant.tasks.inputs import LONGEST, Inputs, longest_row, tokenise
from autoquant.tasks.outputs import Embedding, call
from autoquant.tasks.splitting import assign, pools

DEPTH = 10
"""Ranks that count."""

CORPUS = {"calibration": 256, "search": 1000, "certification": 10_000}
"""Most documents in a split's corpus. All judged documents of its queries are in; chance fills the rest."""

CHUNK = 256
"""Queries ranked at a time."""


@dataclass(frozen=True)
class Part:
    """One split: documents, queries, and for each query document number → gain.

    `same` is the number of the document with the query's own id, which is not an answer to it, or -1.
    """

    documents: tuple[str, ...]
    queries: tuple[str, ...]
    gains: tuple[Mapping[int, float], ...]
    same: tuple[int, ...]


class Retrieval(DataTask):
    """Rows are a split's documents and then its queries; items are the queries, an item's value is its nDCG@10.

    With a folder in the layout of BEIR, queries are dealt into the splits and judged against the corpus, which the
    splits share. With the embedded docstrings (data=None) no text at all is shared between splits.
    """

    name = "retrieval"
    auto_class = "AutoModel"
    metrics = ("ndcg@10",)
    output_kind = "embedding"

    def _build(self) -> Inputs:
        reject_unknown(self.columns, ("qrels",), "--columns", DataError)
        self._embedding = self._read_embedding()
        if self.data is None:
            self._parts = docstring_parts(self.seed, self.sizes)
            limits = (QUERY_TOKENS, DOCUMENT_TOKENS)
        else:
            qrels = self.columns.get("qrels")
            main = read_collection(self.data, None if qrels is None else str(qrels))
            self._parts = beir_parts(
                main, read_collection(self.test_data) if self.test_data else None, self.seed, self.sizes
            )
            limits = (self._embedding.max_length or LONGEST,) * 2
        longest = longest_row(self.processor, self.max_length, limits[1])
        if self.data is not None:
            self.max_length = longest
        query_longest = longest if self.data is not None else min(limits[0], longest)
        rows, lengths = {}, {}
        for split, part in self._parts.items():
            documents = [(self._embedding.document + text,) for text in part.documents]
            rows[split] = documents + [(self._embedding.query + text,) for text in part.queries]
            lengths[split] = [longest] * len(part.documents) + [query_longest] * len(part.queries)
        return tokenise(rows, self.processor, lengths)

    def _read_embedding(self) -> Embedding:
        if "embedding" not in self.settings:
            own = self._forward is not None
            self.settings["embedding"] = (Embedding() if own else Embedding.of(self.processor)).to_dict()
        return Embedding(**self.settings["embedding"])

    def clusters(self, split: str) -> np.ndarray | None:
        """Queries that share a relevant document, directly or through others, are one cluster."""
        return numbered(self._parts[split].gains)

    def digests(self, split: str) -> Sequence[str]:
        """Of the queries: they are what is judged, and other queries may be asked of the same corpus."""
        return super().digests(split)[len(self._parts[split].documents) :]

    def items(self, split: str) -> int:
        return len(self._parts[split].queries)

    def rows_of(self, split: str, items: Sequence[int]) -> Sequence[int]:
        """All documents, and these queries."""
        documents = len(self._parts[split].documents)
        return [*range(documents), *(documents + item for item in items)]

    def _run(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._embedding(call(model, batch, "last_hidden_state"), batch)

    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None) -> np.ndarray:
        part = self._parts[split]
        unit = nn.functional.normalize(self._finite(split, reduced).float(), dim=1)
        documents, queries = unit[: len(part.documents)], unit[len(part.documents) :]
        values = []
        for start in range(0, len(queries), CHUNK):
            similarity = queries[start : start + CHUNK] @ documents.T
            for place, own in enumerate(part.same[start : start + CHUNK]):
                if own >= 0:
                    similarity[place, own] = -2
            ranking = similarity.topk(min(DEPTH, len(documents))).indices.tolist()
            values += [ndcg(found, part.gains[start + place]) for place, found in enumerate(ranking)]
        return np.array(values)

    def fingerprint(self) -> str:
        gains = {split: [sorted(gain.items()) for gain in part.gains] for split, part in self._parts.items()}
        return fingerprint([super().fingerprint(), gains])


def ndcg(ranking: Sequence[int], gains: Mapping[int, float]) -> float:
    """nDCG of one ranking in [0, 1]: gain / log2(1 + rank), summed over the ranking, over that of the best ranking."""
    discounts = 1 / np.log2(np.arange(2, DEPTH + 2))
    best = sorted(gains.values(), reverse=True)[:DEPTH]
    got = sum(gains.get(document, 0.0) * discount for document, discount in zip(ranking, discounts, strict=False))
    return float(got / sum(gain * discount for gain, discount in zip(best, discounts, strict=False)))


def docstring_parts(seed: int, sizes: Mapping[str, int]) -> dict[str, Part]:
    """The embedded docstrings: every query's one document is the rest of its docstring."""
    return {
        split: Part(
            tuple(pair.document for pair in found),
            tuple(pair.query for pair in found),
            tuple({number: 1.0} for number in range(len(found))),
            (-1,) * len(found),
        )
        for split, found in split_pairs(seed, sizes).items()
    }


def beir_parts(main: Collection, test: Collection | None, seed: int, sizes: Mapping[str, int]) -> dict[str, Part]:
    """Deal the queries of `main` into splits; with `test`, certification has that one's queries and corpus."""
    owners = [(main, query) for query in main.queries]
    tests = [(test, query) for query in test.queries] if test else None
    keys = [source.queries[query].casefold() for source, query in owners]
    test_keys = [source.queries[query].casefold() for source, query in tests] if tests else None
    chosen = assign(pools(keys, test_keys), seed, sizes, "queries")
    owners += tests or []
    parts = {}
    for place, (split, index) in enumerate(chosen.items()):
        if not index:
            parts[split] = Part((), (), (), ())
            continue
        source = owners[index[0]][0]
        queries = [owners[i][1] for i in index]
        rng = np.random.default_rng([seed, 1 + place])
        parts[split] = _part(source, queries, _corpus(source, queries, CORPUS[split], rng))
    return parts


def _corpus(source: Collection, queries: Sequence[str], size: int, rng: np.random.Generator) -> list[str]:
    """Document ids in the order of the file: all judged ones, and others by chance up to `size`."""
    judged = {document for query in queries for document in source.gains[query]}
    others = [document for document in source.documents if document not in judged]
    fill = min(max(size - len(judged), 0), len(others))
    kept = judged | {others[i] for i in rng.permutation(len(others))[:fill]}
    return [document for document in source.documents if document in kept]


def _part(source: Collection, queries: Sequence[str], corpus: Sequence[str]) -> Part:
    number = {document: place for place, document in enumerate(corpus)}
    return Part(
        tuple(source.documents[document] for document in corpus),
        tuple(source.queries[query] for query in queries),
        tuple({number[doc]: gain for doc, gain in source.gains[query].items()} for query in queries),
        tuple(number.get(query, -1) if query not in source.gains[query] else -1 for query in queries),
    )
