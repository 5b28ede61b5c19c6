import json

import numpy as np
import pytest
import torch

from autoquant.errors import DataError, NumericsError
from autoquant.models.loading import load_model
from autoquant.tasks import Facts, make
from tests import tiny

LM = Facts(head="causal-lm")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(tiny.texts(300)))
    return path


def test_perplexity_is_exp_of_the_models_own_loss(tmp_path, text):
    loaded = load_model(str(tiny.llama(tmp_path / "m")), "AutoModelForCausalLM")
    task = make("causal-lm", text, loaded.processor, max_length=16, model=loaded.model)
    rows = list(range(task.rows("search")))
    batch = task.batch("search", rows)
    with torch.no_grad():
        reduced = task.reduce(task.forward(loaded.model, batch), batch)
        loss = loaded.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    values = task.score("search", reduced)
    assert task.aggregate("search", values) == pytest.approx(float(loss.exp()), rel=1e-4)
    assert (task.higher_is_better, task.relative, task.positions) == (False, True, True)


def test_knowing_the_next_token_beats_noise(text):
    task = make("causal-lm", text, tiny.tokenizer(bert=False), max_length=16)
    batch = task.batch("search", range(task.rows("search")))
    oracle = 8 * torch.nn.functional.one_hot(batch["input_ids"].roll(-1, 1), 200).float()
    generator = torch.Generator().manual_seed(0)
    noisy = oracle + 4 * torch.randn(oracle.shape, generator=generator)
    perplexity = [task.aggregate("search", task.score("search", task.reduce(o, batch))) for o in (oracle, noisy)]
    assert 1 < perplexity[0] < 1.2 < perplexity[1]


def test_windows_are_disjoint_pieces_of_the_text(text):
    tokenizer = tiny.tokenizer(bert=False)
    task = make("causal-lm", text, tokenizer, max_length=16)
    whole = tokenizer(text.read_text())["input_ids"]
    pieces = {tuple(whole[at : at + 16]): at for at in range(0, len(whole) - 15, 16)}
    seen = [
        pieces[tuple(ids.tolist())]
        for split in ("calibration", "search", "certification")
        for ids in task.batch(split, range(task.rows(split)))["input_ids"]
    ]
    assert len(seen) == len(set(seen)) >= len(pieces) - 2 * 3  # a stretch of 3 windows may be cut at each boundary


def test_every_window_starts_as_the_tokenizer_starts_a_text(text):
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = "[CLS]"
    ids = make("causal-lm", text, tokenizer, max_length=16).batch("search", range(10))["input_ids"]
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert not (ids[:, 1:] == tokenizer.bos_token_id).any()


def test_documents_are_joined_with_the_end_token_and_equal_ones_are_read_once(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in tiny.texts(200) * 2))
    tokenizer = tiny.tokenizer(bert=False)
    task = make("causal-lm", path, tokenizer, max_length=8)
    ids = torch.cat(
        [task.batch(s, range(task.rows(s)))["input_ids"].flatten() for s in ("calibration", "search", "certification")]
    )
    assert 190 <= int((ids == tokenizer.eos_token_id).sum()) <= 200


def test_test_data_alone_are_certified_on(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("zz " * 800)
    task = make("causal-lm", text, tiny.tokenizer(bert=False), max_length=16, test_data=other)
    unknown = task.processor.unk_token_id
    assert (task.batch("certification", range(task.rows("certification")))["input_ids"] == unknown).all()
    assert not (task.batch("search", range(task.rows("search")))["input_ids"] == unknown).any()


def test_too_little_text_is_explained(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("ba be bi")
    with pytest.raises(DataError, match="3 tokens, less than one window of 64"):
        make("causal-lm", path, tiny.tokenizer(bert=False))


def test_agreement_of_language_models_is_a_share_of_positions(text):
    task = make("fidelity", text, tiny.tokenizer(bert=False), max_length=16, model=LM)
    batch = task.batch("search", range(task.rows("search")))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(batch["rows"]), 16, 40, generator=generator)
    other = logits.clone()
    other[:, :3] = -other[:, :3]
    other[:, 15] = -other[:, 15]  # the last position is not judged
    values = task.score("search", task.reduce(other, batch), task.reduce(logits, batch))
    np.testing.assert_allclose(values, 12 / 15)
    logits[1, 14, 0] = torch.nan
    with pytest.raises(NumericsError):
        task.reduce(logits, batch)
