"""The contract of every task in `TASKS`. A new kind joins with a line in `CASES`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.models.loading import architectures, load_model
from autoquant.tasks import SPLITS, TASKS, Task, batches, from_spec, make
from tests import tiny

SIZES = {"calibration": 8, "search": 12, "certification": 40}
LABELS = ("negative", "positive")


def write_csv(path: Path, header: list[str], rows: list[tuple[Any, ...]]) -> Path:
    with open(path, "w", newline="", encoding="utf8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def labelled(folder: Path) -> Path:
    rows = [(text, LABELS[number % 2]) for number, text in enumerate(tiny.texts(80))]
    return write_csv(folder / "labelled.csv", ["sentence", "label"], rows)


def similar(folder: Path) -> Path:
    first, second = tiny.texts(80), tiny.texts(80, seed=1)
    rows = [(a, b, number % 6) for number, (a, b) in enumerate(zip(first, second, strict=True))]
    return write_csv(folder / "pairs.csv", ["sentence1", "sentence2", "score"], rows)


def collection(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    documents, queries = tiny.texts(60, seed=2), tiny.texts(70, seed=3, words=(2, 4))
    lines = [json.dumps({"_id": f"d{i}", "title": "", "text": text}) for i, text in enumerate(documents)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"q{i}", "text": text}) for i, text in enumerate(queries))
    )
    judged = [f"q{i}\td{(i * 7) % 60}\t{1 + i % 2}" for i in range(70)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    return folder


def running(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("\n".join(tiny.texts(400, seed=4)))
    return path


def pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    path = folder / "pictures.npz"
    np.savez(path, x=rng.integers(0, 256, (80, 16, 16, 3), np.uint8), y=np.arange(80) % 2, classes=["cat", "dog"])
    return path


@dataclass(frozen=True)
class Case:
    task: str
    model: Callable[[Path], Path]
    data: Callable[[Path], Path]
    metric: str | None = None
    max_length: int | None = None


def crossencoder(folder: Path) -> Path:
    return tiny.bert_classifier(folder, num_labels=1)


CASES = {
    "retrieval": Case("retrieval", tiny.bert, collection),
    "sts": Case("sts", tiny.bert, similar),
    "sts-crossencoder": Case("sts", crossencoder, similar),
    "classification": Case("classification", tiny.bert_classifier, labelled),
    "causal-lm": Case("causal-lm", tiny.llama, running, max_length=16),
    "causal-lm-gpt2": Case("causal-lm", tiny.gpt2, running, max_length=16),
    "image-classification": Case("image-classification", tiny.vit, pictures),
    "fidelity-cosine": Case("fidelity", tiny.bert, labelled),
    "fidelity-agreement": Case("fidelity", tiny.bert_classifier, labelled, "agreement"),
    "fidelity-kl": Case("fidelity", tiny.bert_classifier, labelled, "kl"),
    "fidelity-kl-yes-no": Case("fidelity", crossencoder, labelled, "kl"),
    "fidelity-lm": Case("fidelity", tiny.llama, running, max_length=16),
    "fidelity-lm-kl": Case("fidelity", tiny.llama, running, "kl", max_length=16),
    "fidelity-images": Case("fidelity", tiny.vit, pictures),
}


@dataclass(frozen=True)
class Made:
    task: Task
    model: torch.nn.Module
    processor: Any
    again: Callable[[int], Task]


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case, folder = request.param, tmp_path_factory.mktemp("task")
    source = case.model(folder / "model")
    loaded = load_model(str(source), TASKS[case.task].auto_class_for(architectures(source)))
    data = case.data(folder)

    def again(seed: int) -> Task:
        more = {"metric": case.metric, "max_length": case.max_length, "sizes": SIZES}
        return make(case.task, data, loaded.processor, model=loaded.model, seed=seed, **more)

    return Made(again(0), loaded.model, loaded.processor, again)


def reduced(task: Task, model: torch.nn.Module, split: str, batch_size: int = 16, noise: float = 0.0) -> torch.Tensor:
    """The kept outputs of all rows in order, with Gaussian noise of so many standard deviations on the outputs."""
    kept: dict[int, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for rows in batches(task, split, batch_size):
            batch = task.batch(split, rows)
            output = task.forward(model, batch)
            if noise:
                output = output + noise * output.std() * torch.randn(output.shape, generator=generator)
            kept |= dict(zip(rows, task.reduce(output, batch), strict=True))
    return torch.stack([kept[row] for row in range(task.rows(split))])


def contents(task: Task, split: str) -> list[bytes]:
    """Every row alone, without padding."""
    rows = (task.batch(split, [row]) for row in range(task.rows(split)))
    return [b"".join(row[key].numpy().tobytes() for key in sorted(row) if key != "rows") for row in rows]


def test_every_task_is_here():
    assert {case.task for case in CASES.values()} == set(TASKS)


def test_the_splits_have_the_sizes_asked_for(made: Made):
    assert {split: made.task.items(split) for split in SPLITS} == SIZES


def test_no_judged_row_is_in_two_splits(made: Made):
    # Of a retrieval task the documents, which come first, are shared; the queries are what is judged.
    judged = {split: contents(made.task, split)[-made.task.items(split) :] for split in SPLITS}
    assert len(set().union(*judged.values())) == sum(len(set(rows)) for rows in judged.values())


def test_the_seed_decides_the_splits(made: Made):
    first, same, other = ([contents(task, s) for s in SPLITS] for task in (made.task, made.again(0), made.again(1)))
    assert first == same
    assert first != other


def test_a_spec_rebuilds_the_same_rows(made: Made):
    spec = json.loads(json.dumps(made.task.spec()))
    rebuilt = from_spec(spec, made.processor)
    assert rebuilt.describe() == made.task.describe()
    assert rebuilt.spec() == made.task.spec()
    assert [contents(rebuilt, s) for s in SPLITS] == [contents(made.task, s) for s in SPLITS]
    assert (rebuilt.output_kind, rebuilt.positions) == (made.task.output_kind, made.task.positions)


def test_a_rebuilt_task_judges_alike(made: Made):
    kept = reduced(made.task, made.model, "search")
    noisy = reduced(made.task, made.model, "search", noise=0.5)
    rebuilt = from_spec(made.task.spec(), made.processor)
    np.testing.assert_array_equal(rebuilt.score("search", noisy, kept), made.task.score("search", noisy, kept))


def test_the_float_model_loses_nothing_against_itself(made: Made):
    kept = reduced(made.task, made.model, "search")
    first, second = (made.task.score("search", kept.clone(), kept) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    if made.task.name == "fidelity":
        assert made.task.aggregate("search", first) == (0.0 if made.task.metric == "kl" else 1.0)


def test_values_are_finite_within_bounds_and_one_an_item(made: Made):
    kept = reduced(made.task, made.model, "certification")
    values = made.task.score("certification", reduced(made.task, made.model, "certification", noise=1.0), kept)
    assert values.shape == (made.task.items("certification"),)
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    if made.task.bounds is not None:
        assert made.task.bounds[0] <= values.min() and values.max() <= made.task.bounds[1]


def test_the_size_of_a_batch_does_not_matter(made: Made):
    """Padding is masked and rows come back in order."""
    alone = reduced(made.task, made.model, "search", batch_size=1)
    together = reduced(made.task, made.model, "search", batch_size=7)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_aggregate_picks_items_by_index(made: Made):
    task = made.task
    kept = reduced(task, made.model, "search")
    values = task.score("search", reduced(task, made.model, "search", noise=0.3), kept)
    count = task.items("search")
    assert task.aggregate("search", values, np.arange(count)[::-1]) == pytest.approx(task.aggregate("search", values))
    half = np.arange(count // 2)
    assert np.isfinite(task.aggregate("search", values, np.repeat(half, 2)))
    assert task.aggregate("search", values, np.repeat(half, 2)) == pytest.approx(task.aggregate("search", values, half))
    if task.mean_of_items:
        assert task.aggregate("search", values) == pytest.approx(values.mean())


def test_forward_is_float32_and_differentiable(made: Made):
    output = made.task.forward(made.model, made.task.batch("calibration", [0, 1, 2]))
    assert output.dtype == torch.float32
    assert output.ndim == (3 if made.task.positions else 2)
    made.model.zero_grad()
    output.square().sum().backward()
    gradients = [p.grad for p in made.model.parameters() if p.grad is not None]
    made.model.zero_grad()
    assert gradients and any(gradient.abs().sum() > 0 for gradient in gradients)


def test_noise_on_the_outputs_does_not_help_a_task_that_the_model_solves(made: Made):
    """A model judged against its own answers does best as it is."""
    task = made.task
    if task.name != "fidelity":
        pytest.skip("random weights solve no task with labels; see the tests of each task")
    kept = reduced(task, made.model, "certification")
    clean, little, much = (
        task.aggregate(
            "certification", task.score("certification", reduced(task, made.model, "certification", noise=n), kept)
        )
        for n in (0.0, 0.1, 5.0)
    )
    sign = 1 if task.higher_is_better else -1
    assert sign * clean >= sign * little > sign * much


def test_nan_outputs_are_refused(made: Made):
    kept = reduced(made.task, made.model, "search")
    if not kept.is_floating_point():
        pytest.skip("tokens, not numbers, are kept; reduce refuses NaN")
    with pytest.raises(Exception, match="NaN"):
        made.task.score("search", torch.full_like(kept, torch.nan), kept)


def test_an_example_has_exactly_the_shape_asked_for_and_runs(made: Made):
    length = 11 if made.task.seq_len else None
    batch = made.task.example(3, length)
    if length is None:
        assert len(batch["pixel_values"]) == 3
    else:
        assert batch["input_ids"].shape == (3, 11)
        assert batch["attention_mask"].all()
        assert batch["input_ids"].unique().numel() > 3
    assert len(made.task.forward(made.model, batch)) == 3


def test_the_typical_length_is_a_multiple_of_16(made: Made):
    length = made.task.seq_len
    if max(made.task.lengths("search")) == 1:
        assert length is None
    else:
        assert length and length % 16 == 0


def test_lengths_are_those_of_the_rows(made: Made):
    lengths = made.task.lengths("calibration")
    assert len(lengths) == made.task.rows("calibration")
    batch = made.task.batch("calibration", [0, 3])
    if "input_ids" in batch:
        assert batch["attention_mask"].sum(1).tolist() == [lengths[0], lengths[3]]


def test_a_mask_fits_the_positions(made: Made):
    batch = made.task.batch("search", [0, 1])
    mask = made.task.mask(batch)
    assert (mask is not None) == made.task.positions
    if mask is not None:
        assert mask.shape == made.task.forward(made.model, batch).shape[:2]
        assert mask[:, :-1].all() and not mask[:, -1].any()


def test_the_fingerprint_follows_the_data(made: Made):
    assert made.task.describe()["fingerprint"] != made.again(1).describe()["fingerprint"]
