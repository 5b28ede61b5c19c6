"""Retrieval, STS and classification: their metrics against hand-made outputs."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from autoquant.errors import DataError, ModelError, NumericsError, StaleError
from autoquant.models.loading import load_model
from autoquant.tasks import Facts, from_spec, make
from autoquant.tasks.retrieval import ndcg
from tests import tiny

SIZES = {"calibration": 8, "search": 12, "certification": 40}


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def labelled(tmp_path):
    rows = [(text, ("negative", "Positive")[number % 2]) for number, text in enumerate(tiny.texts(60))]
    return write_csv(tmp_path / "labelled.csv", [("text", "label"), *rows])


@pytest.fixture
def pairs(tmp_path):
    rows = list(zip(tiny.texts(60), tiny.texts(60, seed=1), np.arange(60) / 12, strict=True))
    return write_csv(tmp_path / "pairs.csv", [("text1", "text2", "score"), *rows])


SENTIMENT = Facts(head="classifier", labels=2, label2id={"negative": 0, "positive": 1})


def test_accuracy_counts_right_labels(labelled):
    task = make("classification", labelled, tiny.tokenizer(), model=SENTIMENT, sizes=SIZES)
    texts = {text: number % 2 for number, text in enumerate(tiny.texts(60))}
    ids = [task.batch("certification", [row])["input_ids"][0] for row in range(40)]
    gold = torch.tensor([texts[task.processor.decode(row, skip_special_tokens=True)] for row in ids])
    oracle = torch.nn.functional.one_hot(gold, 2).float()
    assert task.aggregate("certification", task.score("certification", oracle)) == 1.0
    assert task.aggregate("certification", task.score("certification", -oracle)) == 0.0
    oracle[:10] *= -1
    assert task.score("certification", oracle).tolist() == [0.0] * 10 + [1.0] * 30


def test_one_logit_decides_by_its_sign(labelled):
    task = make(
        "classification", labelled, tiny.tokenizer(), model=Facts("classifier", labels=1, label2id=SENTIMENT.label2id)
    )
    assert task.output_kind == "bernoulli"
    up = task.score("certification", torch.full((task.items("certification"), 1), 2.0))
    down = task.score("certification", torch.full((task.items("certification"), 1), -2.0))
    np.testing.assert_array_equal(up, 1 - down)
    assert 0 < up.mean() < 1


def test_numbers_and_names_are_the_same_labels(labelled, tmp_path):
    rows = [(text, number % 2) for number, text in enumerate(tiny.texts(60))]
    numbered = write_csv(tmp_path / "numbered.csv", [("text", "label"), *rows])
    first, second = (make("classification", data, tiny.tokenizer(), model=SENTIMENT) for data in (labelled, numbered))
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.parametrize(
    ("label", "facts"), [("neutral", SENTIMENT), ("2", SENTIMENT), ("", SENTIMENT), ("positive", Facts())]
)
def test_a_label_that_the_model_does_not_have_is_named(tmp_path, label, facts):
    file = write_csv(tmp_path / "a.csv", [("text", "label"), *((text, label) for text in tiny.texts(60))])
    with pytest.raises(DataError, match=f"row 0 has the label '{label}'.*(negative, positive|whole numbers)"):
        make("classification", file, tiny.tokenizer(), model=facts)


def test_a_label_beyond_the_outputs_is_found_without_facts(tmp_path):
    file = write_csv(tmp_path / "a.csv", [("text", "label"), *((text, 3) for text in tiny.texts(60))])
    task = make("classification", file, tiny.tokenizer())
    with pytest.raises(DataError, match="label 3, but the model has 2 outputs"):
        task.score("search", torch.zeros(task.rows("search"), 2))


def test_a_pair_reaches_the_model_as_a_pair(tmp_path):
    rows = [(a, b, 0) for a, b in zip(tiny.texts(60), tiny.texts(60, seed=1), strict=True)]
    file = write_csv(tmp_path / "a.csv", [("premise", "hypothesis", "label"), *rows])
    batch = make("classification", file, tiny.tokenizer()).batch("search", [0, 1])
    assert batch["token_type_ids"].max() == 1


def test_spearman_is_that_of_scipy_and_noise_lowers_it(pairs):
    task = make("sts", pairs, tiny.tokenizer(), sizes=SIZES)
    angle = torch.from_numpy(task._gold["certification"]) / 5 * 3
    first = torch.tensor([[1.0, 0.0]]).repeat(40, 1).double()
    second = torch.stack([angle.cos(), angle.sin()], 1)
    values = task.score("certification", torch.cat([first, second]))
    np.testing.assert_allclose(values, angle.cos(), atol=1e-12)
    assert task.aggregate("certification", values) == pytest.approx(-1)
    noisy = values + np.random.default_rng(0).normal(0, 0.5, 40).round(1)
    index = np.random.default_rng(1).integers(0, 40, 40)
    expected = spearmanr(noisy[index], task._gold["certification"][index]).statistic
    assert task.aggregate("certification", noisy, index) == pytest.approx(expected)
    assert abs(task.aggregate("certification", noisy)) < 1
    assert task.aggregate("certification", np.ones(40)) == 0.0


def test_swapped_pairs_are_one_pair(tmp_path):
    first, second = tiny.texts(40), tiny.texts(40, seed=1)
    rows = [(a, b, 1) for a, b in zip(first + second, second + first, strict=True)]
    task = make("sts", write_csv(tmp_path / "a.csv", [("text1", "text2", "score"), *rows]), tiny.tokenizer())
    sides = {}
    for split in ("calibration", "search", "certification"):
        ids = [tuple(task.batch(split, [row])["input_ids"][0].tolist()) for row in range(task.rows(split))]
        count = task.items(split)
        sides[split] = {frozenset(pair) for pair in zip(ids[:count], ids[count:], strict=True)}
    assert not sides["search"] & sides["certification"]
    assert not sides["calibration"] & (sides["search"] | sides["certification"])


def test_sts_refuses_a_classifier_of_many_labels(pairs):
    with pytest.raises(DataError, match="one output, not 2 labels"):
        make("sts", pairs, tiny.tokenizer(), model=SENTIMENT)


def test_ndcg_of_hand():
    assert ndcg([3, 1, 2], {3: 1.0}) == 1.0
    assert ndcg([1, 3, 2], {3: 1.0}) == pytest.approx(1 / np.log2(3))
    graded = (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))
    assert ndcg([5, 6, 0], {5: 1.0, 6: 2.0}) == pytest.approx(graded)
    assert ndcg([0, 1], {9: 1.0}) == 0.0
    assert ndcg(list(range(10)), {number: 1.0 for number in range(30)}) == pytest.approx(1.0)


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents, queries = tiny.texts(60, seed=2), tiny.texts(60, seed=3)
    corpus = [{"_id": f"d{i}", "title": "ba", "text": text} for i, text in enumerate(documents)]
    corpus.append({"_id": "q0", "title": "", "text": "a document with the id of a query"})
    asked = [{"_id": f"q{i}", "text": text} for i, text in enumerate(queries)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    judged = [f"q{i}\td{i}\t1" for i in range(60)] + ["q1\td5\t0", "q2\tgone\t1"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    return folder


def test_retrieval_finds_what_is_nearest(beir):
    task = make("retrieval", beir, tiny.tokenizer(), sizes=SIZES)
    part = task._parts["certification"]
    documents = torch.eye(len(part.documents))
    answers = torch.stack([documents[next(iter(gain))] for gain in part.gains])
    assert task.score("certification", torch.cat([documents, 3 * answers])).tolist() == [1.0] * 40
    generator = torch.Generator().manual_seed(0)
    noisy = answers + 0.3 * torch.randn(answers.shape, generator=generator)
    noise = task.score("certification", torch.cat([documents, noisy]))
    assert 0 < noise.mean() < 1


def test_a_document_with_the_querys_own_id_is_no_answer(beir):
    task = make("retrieval", beir, tiny.tokenizer(), sizes=SIZES)
    split, place = next((s, p.same.index(own)) for s, p in task._parts.items() for own in p.same if own >= 0)
    part = task._parts[split]
    documents = torch.eye(len(part.documents))
    answers = torch.stack([documents[next(iter(gain))] for gain in part.gains])
    answers[place] += 5 * documents[part.same[place]]
    assert task.score(split, torch.cat([documents, answers]))[place] == 1.0


def test_the_corpus_is_shared_and_the_queries_are_not(beir):
    task = make("retrieval", beir, tiny.tokenizer(), sizes=SIZES)
    parts = task._parts
    assert parts["search"].documents == parts["certification"].documents
    assert len(parts["search"].documents) == 61
    assert not set(parts["search"].queries) & set(parts["certification"].queries)


def test_a_second_collection_is_certified_on(beir, tmp_path):
    other = shutil.copytree(beir, tmp_path / "other")
    asked = [{"_id": f"q{i}", "text": text} for i, text in enumerate(tiny.texts(60, seed=9))]
    (other / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    task = make("retrieval", beir, tiny.tokenizer(), test_data=other, sizes={"certification": 30})
    assert task.items("certification") == 30
    assert set(task._parts["certification"].queries) <= {row["text"] for row in asked}
    with pytest.raises(DataError, match="60 of them left out because the test data has them"):
        make("retrieval", beir, tiny.tokenizer(), test_data=beir)


def test_a_large_corpus_is_cut_but_keeps_what_is_judged(beir, monkeypatch):
    monkeypatch.setattr("autoquant.tasks.retrieval.CORPUS", dict.fromkeys(SIZES, 45))
    task = make("retrieval", beir, tiny.tokenizer(), sizes=SIZES)
    for split, size in SIZES.items():
        assert len(task._parts[split].documents) == max(45, size)
        assert len(task._parts[split].queries) == size


@pytest.mark.parametrize(
    ("missing", "says"),
    [("corpus.jsonl", "no corpus.jsonl"), ("queries.jsonl", "no queries.jsonl"), ("qrels/test.tsv", "no qrels")],
)
def test_a_folder_that_is_not_a_collection_is_explained(beir, missing, says):
    (beir / missing).unlink()
    with pytest.raises(DataError, match=says):
        make("retrieval", beir, tiny.tokenizer())


def test_ids_that_do_not_match_are_explained(beir):
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nx\ty\t1\n")
    with pytest.raises(DataError, match="do the ids match"):
        make("retrieval", beir, tiny.tokenizer())


@pytest.mark.parametrize(("pooling", "pick"), [("cls", 0), ("lasttoken", -1)])
def test_pooling_is_read_beside_the_tokenizer(tmp_path, pairs, pooling, pick):
    loaded = load_model(str(tiny.bert(tmp_path / "m", pooling=pooling)), "AutoModel")
    task = make("sts", pairs, loaded.processor, model=loaded.model)
    batch = task.batch("search", [0])
    hidden = loaded.model(**{key: value for key, value in batch.items() if key != "rows"}).last_hidden_state[0, pick]
    torch.testing.assert_close(task.forward(loaded.model, batch)[0], torch.nn.functional.normalize(hidden, dim=0))
    assert task.max_length == 48


def test_an_unknown_pipeline_step_is_refused_unless_forward_is_given(tmp_path, pairs):
    folder = tiny.bert(tmp_path / "m")
    steps = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(
        json.dumps([*steps, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}])
    )
    loaded = load_model(str(folder), "AutoModel")
    with pytest.raises(ModelError, match="step Dense"):
        make("sts", pairs, loaded.processor, model=loaded.model)
    task = make("sts", pairs, loaded.processor, model=loaded.model, forward=lambda m, b: m(b["input_ids"])[0][:, 0])
    assert task.forward(loaded.model, task.batch("search", [0, 1])).shape == (2, tiny.WIDTH)
    with pytest.raises(DataError, match="forward"):
        from_spec(task.spec(), loaded.processor)


def test_any_module_that_returns_a_tensor_can_be_judged(pairs):
    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(200, 8)

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.table(input_ids)

    task = make("sts", pairs, tiny.tokenizer(), model=Bag())
    output = task.forward(Bag(), task.batch("search", [0, 1]))
    torch.testing.assert_close(output.norm(dim=1), torch.ones(2))


def test_a_model_without_the_output_that_is_judged_is_explained(tmp_path, labelled):
    loaded = load_model(str(tiny.bert(tmp_path / "m")), "AutoModel")
    task = make("classification", labelled, loaded.processor, model=SENTIMENT)
    with pytest.raises(ModelError, match="without 'logits'"):
        task.forward(loaded.model, task.batch("search", [0]))


def test_changed_data_make_a_spec_stale(labelled):
    task = make("classification", labelled, tiny.tokenizer(), model=SENTIMENT)
    labelled.write_text(labelled.read_text().replace("Positive", "Negative"))
    with pytest.raises(StaleError, match="changed since"):
        from_spec(task.spec(), tiny.tokenizer())


def test_what_cannot_work_is_said_before_anything_runs(labelled, pairs):
    with pytest.raises(DataError, match="needs data"):
        make("sts", None, tiny.tokenizer())
    with pytest.raises(DataError, match="no metric 'f1'.*accuracy"):
        make("classification", labelled, tiny.tokenizer(), model=SENTIMENT, metric="f1")
    with pytest.raises(DataError, match="Did you mean 'classification'"):
        make("clasification", labelled, tiny.tokenizer())
    with pytest.raises(DataError, match="takes 4 to 64 tokens"):
        make("sts", pairs, tiny.tokenizer(), max_length=100)
    with pytest.raises(DataError, match="no tokenizer"):
        make("sts", pairs, None)


def test_nan_names_its_row(pairs):
    task = make("sts", pairs, tiny.tokenizer())
    output = torch.ones(task.rows("search"), 4)
    output[5, 2] = torch.nan
    with pytest.raises(NumericsError, match=r"in 1 of \d+ rows, first in 5"):
        task.score("search", output)
    with pytest.raises(ValueError, match="all"):
        task.score("search", output[:3])


def test_long_texts_are_cut(tmp_path):
    rows = [(" ".join([text] * 40), 0) for text in tiny.texts(60)]
    file = write_csv(tmp_path / "a.csv", [("text", "label"), *rows])
    task = make("classification", file, tiny.tokenizer(), max_length=20)
    assert set(task.lengths("search")) == {20}
