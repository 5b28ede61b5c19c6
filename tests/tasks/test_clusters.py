"""Which items belong together, and that they stay together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoquant.tasks import SPLITS, make
from autoquant.tasks.clusters import clustered_pools, components, numbered
from autoquant.tasks.facts import Facts
from autoquant.tasks.splitting import assign
from tests import tiny


@given(st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=14))
def test_items_are_together_exactly_where_a_chain_of_shared_keys_connects_them(keys: list[list[int]]) -> None:
    found = components(keys)
    reach = np.array(
        [[a == b or bool(set(keys[a]) & set(keys[b])) for b in range(len(keys))] for a in range(len(keys))]
    )
    for _ in keys:
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    same = [[one == other for other in found] for one in found]
    assert np.array_equal(reach, np.array(same))
    assert list(dict.fromkeys(found)) == list(range(len(set(found))))


def test_independent_items_have_no_clusters() -> None:
    assert numbered([[1], [2], []]) is None and numbered([]) is None
    assert numbered([[1], [2], [1]]).tolist() == [0, 1, 0]


def test_clusters_and_equal_rows_stay_in_one_split() -> None:
    rows = [f"text {number % 190}" for number in range(200)]
    clusters = [number // 4 for number in range(200)]
    chosen = assign(clustered_pools(rows, None, clusters), 0)
    for split in SPLITS:
        others = {clusters[row] for other in SPLITS if other != split for row in chosen[other]}
        assert not others & {clusters[row] for row in chosen[split]}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    rows = [f"{text},{number % 2},p{number // 3}" for number, text in enumerate(tiny.texts(120))]
    path.write_text("text,label,passage\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("name", ["classification", "fidelity"])
def test_a_column_marks_the_clusters_of_a_table(table: Path, name: str) -> None:
    task = make(name, table, tiny.tokenizer(), columns={"cluster": "passage"}, undivided=True,
                model=Facts("classifier", labels=2))  # fmt: skip
    found = task.clusters("certification")
    assert found is not None and len(found) == 120 and len(set(found)) == 40
    assert make(name, table, tiny.tokenizer(), model=Facts("classifier", labels=2)).clusters("certification") is None


def test_pairs_have_clusters_too(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    texts = tiny.texts(60)
    path.write_text(
        "text1,text2,score,page\n"
        + "\n".join(f"{a},{a} {b},{i},{i % 6}" for i, (a, b) in enumerate(zip(texts, texts[::-1], strict=True)))
    )
    task = make("sts", path, tiny.tokenizer(), columns={"cluster": "page"}, undivided=True, model=Facts("embedding"))
    assert len(set(task.clusters("certification"))) == 6  # type: ignore[arg-type]


def test_a_file_without_header_has_no_cluster_column_unless_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text("\n".join(f"{text}\t{i % 2}\t{i // 2}\t{i}" for i, text in enumerate(tiny.texts(80))))
    facts = Facts("classifier", labels=2)
    named = make("classification", path, tiny.tokenizer(), columns={"text": 0, "label": 1, "cluster": 2}, model=facts)
    alone = make("classification", path, tiny.tokenizer(), columns={"text": 0, "label": 1}, model=facts)
    assert named.clusters("search") is not None and alone.clusters("search") is None


def test_queries_that_share_a_document_are_one_cluster(tmp_path: Path) -> None:
    texts = tiny.texts(100)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        "".join(f'{{"_id": "d{i}", "text": "{t}"}}\n' for i, t in enumerate(texts[:50]))
    )
    (tmp_path / "queries.jsonl").write_text(
        "".join(f'{{"_id": "q{i}", "text": "{t}"}}\n' for i, t in enumerate(texts[50:]))
    )
    judged = "".join(f"q{i}\td{i // 2}\t1\n" for i in range(50))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    task = make("retrieval", tmp_path, tiny.tokenizer(), undivided=True, model=Facts("embedding"))
    found = task.clusters("certification")
    assert found is not None and len(found) == 50 and len(set(found)) == 25


def test_undivided_data_are_all_for_certification(table: Path) -> None:
    facts = Facts("classifier", labels=2)
    task = make("classification", table, tiny.tokenizer(), undivided=True, model=facts)
    assert [task.items(split) for split in SPLITS] == [0, 0, 120]
    assert task.batch("certification", [0])["input_ids"].shape[0] == 1
    assert task.example(2, task.seq_len)["input_ids"].shape == (2, task.seq_len)
    assert len(set(task.digests("certification"))) == 120
    part = make("classification", table, tiny.tokenizer(), undivided=True, sizes={"certification": 30}, model=facts)
    assert part.items("certification") == 30
