import csv

import numpy as np
import pytest
import torch

from autoquant.errors import DataError, UsageError
from autoquant.tasks import Facts, make
from tests import tiny

CLASSIFIER, EMBEDDING = Facts("classifier", labels=3), Facts("embedding")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(tiny.texts(60)))
    return path


def test_the_metric_follows_the_model(texts):
    made = {f.head: make("fidelity", texts, tiny.tokenizer(), model=f) for f in (CLASSIFIER, EMBEDDING)}
    assert {head: (task.metric, task.output_kind) for head, task in made.items()} == {
        "classifier": ("agreement", "softmax"),
        "embedding": ("cosine", "embedding"),
    }
    with pytest.raises(DataError, match="no metric 'kl'.*cosine"):
        make("fidelity", texts, tiny.tokenizer(), model=EMBEDDING, metric="kl")


def test_agreement_counts_rows_whose_top_label_stays(texts):
    task = make("fidelity", texts, tiny.tokenizer(), model=CLASSIFIER)
    ours = torch.eye(3).repeat(task.rows("search"), 1)[: task.rows("search")]
    theirs = ours.clone()
    theirs[:4] = theirs[:4].roll(1, 1)
    assert task.score("search", ours, theirs).tolist() == [0.0] * 4 + [1.0] * (len(ours) - 4)


def test_kl_is_that_of_torch(texts):
    task = make("fidelity", texts, tiny.tokenizer(), model=CLASSIFIER, metric="kl")
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, task.rows("search"), 3, generator=generator)
    p, q = (torch.distributions.Categorical(logits=logits.double()) for logits in (theirs, ours))
    np.testing.assert_allclose(task.score("search", ours, theirs), torch.distributions.kl_divergence(p, q), atol=1e-12)
    assert not task.higher_is_better


def test_kl_of_one_logit_is_that_of_a_yes_or_no(texts):
    task = make("fidelity", texts, tiny.tokenizer(), model=Facts("classifier", labels=1), metric="kl")
    ours, theirs = torch.linspace(-3, 3, task.rows("search"))[:, None], torch.ones(task.rows("search"), 1)
    p, q = (torch.distributions.Bernoulli(logits=logits[:, 0].double()) for logits in (theirs, ours))
    np.testing.assert_allclose(task.score("search", ours, theirs), torch.distributions.kl_divergence(p, q), atol=1e-9)


def test_cosine_does_not_depend_on_length(texts):
    task = make("fidelity", texts, tiny.tokenizer(), model=EMBEDDING)
    generator = torch.Generator().manual_seed(0)
    theirs = torch.randn(task.rows("search"), 8, generator=generator)
    np.testing.assert_allclose(task.score("search", 3 * theirs, theirs), 1, atol=1e-12)
    assert (task.score("search", -theirs, theirs) == 0).all()


def test_a_model_is_never_compared_with_itself_by_accident(texts):
    task = make("fidelity", texts, tiny.tokenizer(), model=EMBEDDING)
    with pytest.raises(UsageError, match="reference="):
        task.score("search", torch.ones(task.rows("search"), 8))


def test_labels_are_not_needed(tmp_path):
    path = tmp_path / "pairs.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(
            [("premise", "hypothesis"), *zip(tiny.texts(60), tiny.texts(60, seed=1), strict=True)]
        )
    assert make("fidelity", path, tiny.tokenizer(), model=CLASSIFIER).batch("search", [0])["token_type_ids"].max() == 1
