import pytest

from autoquant.tasks import docstrings, make
from autoquant.tasks.docstrings import pairs, split_pairs
from tests import tiny

SIZES = {"calibration": 32, "search": 64, "certification": 128}


def test_pairs_are_distinct_and_long_enough():
    found = pairs()
    assert len(found) > 2000
    assert len({pair.query.casefold() for pair in found}) == len(found)
    assert len({pair.document.casefold() for pair in found}) == len(found)
    assert all(len(pair.query.split()) >= 3 and len(pair.document.split()) >= 8 for pair in found)


def test_modules_are_not_shared_and_the_seed_decides():
    first, same, other = split_pairs(0), split_pairs(0), split_pairs(1)
    assert first == same and first != other
    modules = [{pair.module for pair in part} for part in first.values()]
    assert sum(map(len, modules)) == len(set().union(*modules))
    assert len(first["calibration"]) == 256 and len(first["search"]) == 800


def test_files_are_parsed_and_never_run(tmp_path, monkeypatch):
    library = tmp_path / "lib"
    (library / "tests").mkdir(parents=True)
    body = '"""{0} does a thing.\n\nThis is {0}, told in many more words than eight of them."""\n'
    (library / "a.py").write_text(body.format("First") + "raise SystemExit\n")
    (library / "b.py").write_text(
        "class B:\n    def method(self):\n        " + body.format("Second") + 'S = """x\n\ny"""\n'
    )
    (library / "c.py").write_text(body.format("First"))
    (library / "broken.py").write_text('"""Broken is it.\n\n"""def')
    (library / "_private.py").write_text(body.format("Private"))
    (library / "tests" / "d.py").write_text(body.format("Third"))
    monkeypatch.setattr(docstrings, "libraries", lambda: {"lib": library})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pairs.cache_clear()
    try:
        found = pairs()
        assert [(pair.module, pair.query) for pair in found] == [
            ("lib/a.py", "First does a thing."),
            ("lib/b.py", "Second does a thing."),
        ]
        pairs.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(docstrings, "_of_file", None)
            assert pairs() == found, "kept: nothing is parsed again"
        pairs.cache_clear()
        (library / "c.py").write_text(body.format("Fourth"))
        assert len(pairs()) == 3, "a file has changed"
        pairs.cache_clear()
        (kept,) = (tmp_path / "cache" / "autoquant").glob("docstrings-*.json")
        kept.write_text(kept.read_text()[:50])
        assert len(pairs()) == 3, "what was kept is damaged"
    finally:
        pairs.cache_clear()


def test_retrieval_on_docstrings_shares_no_text_between_splits():
    task = make("retrieval", None, tiny.tokenizer(), sizes=SIZES, max_length=24)
    parts = task._parts
    assert {split: task.items(split) for split in SIZES} == SIZES
    assert {split: task.rows(split) for split in SIZES} == {split: 2 * size for split, size in SIZES.items()}
    texts = [{*part.documents, *part.queries} for part in parts.values()]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 2 * sum(SIZES.values())
    assert max(task.lengths("certification")) == 24


@pytest.mark.parametrize("task", ["causal-lm", "fidelity"])
def test_other_tasks_without_labels_can_use_them(task):
    made = make(task, None, tiny.tokenizer(bert=False), max_length=32, sizes=SIZES)
    assert {split: made.items(split) for split in SIZES} == SIZES
    assert made.describe()["data"] == "docstrings"
