"""Read retrieval data in the layout of BEIR: `corpus.jsonl`, `queries.jsonl` and `qrels/NAME.tsv`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.errors import DataError, nearest
from autoquant.tasks.data import read_jsonl

QRELS = ("test", "dev", "validation", "valid", "train")
"""Which judgments are read when a folder has several and none is named: the first of these."""

LAYOUT = (
    'A retrieval folder holds corpus.jsonl (one {"_id", "title", "text"} a line), queries.jsonl ({"_id", "text"}) and '
    "qrels/test.tsv (query-id, corpus-id, score; with header)."
)


@dataclass(frozen=True)
class Collection:
    """Documents and judged queries.

    Attributes:
        documents: document id → title and text in one.
        queries: query id → text; only those with at least one relevant document in `documents`.
        gains: query id → document id → gain; zeros and documents that are not there are left out.
    """

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    gains: Mapping[str, Mapping[str, float]]


def read_collection(folder: str | Path, qrels: str | None = None) -> Collection:
    """Read a folder; `qrels` names the file of judgments without its ending.

    Raises:
        DataError: a file or field is missing, or no query has a relevant document.
    """
    folder = Path(folder)
    for name in ("corpus.jsonl", "queries.jsonl"):
        if not (folder / name).is_file():
            raise DataError(f"{folder} has no {name}. {LAYOUT}")
    documents = {
        _field(row, "_id", folder / "corpus.jsonl"): " ".join(
            part for part in (str(row.get("title") or "").strip(), str(row.get("text") or "").strip()) if part
        )
        for row in read_jsonl(folder / "corpus.jsonl")
    }
    documents = {key: text for key, text in documents.items() if text}
    texts = {
        _field(row, "_id", folder / "queries.jsonl"): _field(row, "text", folder / "queries.jsonl")
        for row in read_jsonl(folder / "queries.jsonl")
    }
    gains: dict[str, dict[str, float]] = {}
    for query, document, gain in _judgments(_qrels_file(folder, qrels)):
        if gain > 0 and query in texts and document in documents:
            gains.setdefault(query, {})[document] = gain
    if not gains:
        raise DataError(f"{folder}: no query has a relevant document that is in the corpus; do the ids match? {LAYOUT}")
    return Collection(documents, {query: texts[query] for query in gains}, gains)


def _field(row: Mapping[str, Any], name: str, file: Path) -> str:
    value = row.get(name)
    if value is None or not str(value).strip():
        raise DataError(f"{file}: an object has no '{name}'; it has {', '.join(map(str, row))}. {LAYOUT}")
    return str(value)


def _qrels_file(folder: Path, name: str | None) -> Path:
    files = {file.stem: file for file in sorted((folder / "qrels").glob("*.tsv"))}
    if not files:
        raise DataError(f"{folder} has no qrels/*.tsv. {LAYOUT}")
    if name is not None and name not in files:
        raise DataError(f"{folder}/qrels has no {name}.tsv.{nearest(name, files)}")
    return files[name or next((usual for usual in QRELS if usual in files), next(iter(files)))]


def _judgments(file: Path) -> list[tuple[str, str, float]]:
    with open(file, newline="", encoding="utf-8-sig") as lines:
        rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    try:
        return [(query, document, float(gain)) for query, document, gain in rows[1:]]
    except ValueError as error:
        raise DataError(f"{file}: every line needs three cells, the last a number ({error}). {LAYOUT}") from error
