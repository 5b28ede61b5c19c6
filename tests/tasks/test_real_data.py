"""The published figures of the development models on the development data; skipped where those are not here.

Set AUTOQUANT_DEV_DATA and AUTOQUANT_DEV_MODELS to their folders. Takes some minutes on two cores.
"""

import os
from pathlib import Path

import pytest
import torch

from autoquant.models.loading import architectures, load_model
from autoquant.tasks import TASKS, batches, make

DATA = Path(os.environ.get("AUTOQUANT_DEV_DATA") or "shared/data")
MODELS = Path(os.environ.get("AUTOQUANT_DEV_MODELS", Path.home() / ".cache" / "autoquant-dev-models"))
pytestmark = pytest.mark.skipif(
    not (DATA.is_dir() and MODELS.is_dir()), reason="the development data or models are not here"
)

FIGURES = {
    "minilm-stsb": ("minilm", "sts", "stsb/stsb-en-dev.csv", "stsb/stsb-en-test.csv", 0.8203),
    "crossencoder-stsb": ("minilm-stsb-crossencoder", "sts", "stsb/stsb-en-dev.csv", "stsb/stsb-en-test.csv", 0.8263),
    "sst2": ("minilm-sst2", "classification", "sst2/dev.tsv", "sst2/test.tsv", 0.8819),
    "cifar10": ("dinov2-cifar10", "image-classification", "cifar10/cifar10_subset.npz", None, 0.7560),
}


@pytest.mark.parametrize(("model", "task", "data", "test", "figure"), FIGURES.values(), ids=FIGURES)
def test_the_float_model_reaches_its_published_figure(model, task, data, test, figure):
    folder = MODELS / model
    loaded = load_model(str(folder), TASKS[task].auto_class_for(architectures(folder)))
    made = make(task, DATA / data, loaded.processor, test_data=DATA / test if test else None, model=loaded.model)
    # CIFAR-10's test images are dealt into two splits; the figure is of both.
    splits = ("certification",) if test else ("search", "certification")
    counts = [made.items(split) for split in splits]
    found = [run(made, loaded.model, split) for split in splits]
    assert sum(n * value for n, value in zip(counts, found, strict=True)) / sum(counts) == pytest.approx(
        figure, abs=6e-4
    )


def run(task, model, split):
    kept = {}
    with torch.inference_mode():
        for rows in batches(task, split, 32):
            batch = task.batch(split, rows)
            kept |= dict(zip(rows, task.reduce(task.forward(model, batch), batch), strict=True))
    reduced = torch.stack([kept[row] for row in range(task.rows(split))])
    return task.aggregate(split, task.score(split, reduced))
