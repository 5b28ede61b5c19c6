"""What is served: models, their shapes, and the task that judges them. All of it is data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
STEPS = 8
"""Tokens decoded in one round, from a cache of the shape's length."""


@dataclass(frozen=True)
class Shape:
    """One thing to time.

    Attributes:
        kind: `forward` (one pass over a batch) or `decode` (one token after the other, with a filled cache).
        length: tokens a row, or tokens in the cache; None for images.
    """

    name: str
    kind: str
    batch: int
    length: int | None = None


@dataclass(frozen=True)
class Judge:
    """A task on data files below the data folder; `data` None is the embedded docstrings."""

    task: str
    data: str | None = None
    test_data: str | None = None
    columns: Mapping[str, int] = field(default_factory=dict)

    def there(self, folder: Path) -> bool:
        return all((folder / name).exists() for name in (self.data, self.test_data) if name)


@dataclass(frozen=True)
class Model:
    """A model below the folder of models.

    Attributes:
        output: field of the model's output that is compared and judged.
        inputs: names of the inputs, in the order in which graphs are exported.
        axes: which dimensions of an input vary, and what they are called.
        judges: the first whose data is there judges the model.
        items: rows of the certification split that are judged at most; small, so that every engine can be judged.
        fusion: name of ONNX Runtime's graph optimizer for this architecture.
    """

    name: str
    auto_class: str
    output: str
    inputs: tuple[str, ...]
    axes: Mapping[int, str]
    shapes: tuple[Shape, ...]
    judges: tuple[Judge, ...]
    items: int
    fusion: str | None = None


def _texts(*sizes: tuple[int, int]) -> tuple[Shape, ...]:
    return tuple(Shape(f"{batch}x{length}", "forward", batch, length) for batch, length in sizes)


PAIR = {"text": 0, "text_pair": 1, "score": 2}
MODELS = {
    model.name: model
    for model in (
        Model(
            "minilm",
            "AutoModel",
            "last_hidden_state",
            ("input_ids", "attention_mask", "token_type_ids"),
            {0: "batch", 1: "length"},
            _texts((1, 16), (1, 128), (8, 128), (32, 128)),
            (Judge("sts", "stsb/stsb-en-dev.csv", "stsb/stsb-en-test.csv", PAIR), Judge("retrieval")),
            items=400,
            fusion="bert",
        ),
        Model(
            "dinov2-cifar10",
            "AutoModelForImageClassification",
            "logits",
            ("pixel_values",),
            {0: "batch"},
            (Shape("1-image", "forward", 1), Shape("8-images", "forward", 8)),
            (Judge("image-classification", "cifar10/cifar10_subset.npz"),),
            items=400,
        ),
        Model(
            "smollm2",
            "AutoModelForCausalLM",
            "logits",
            ("input_ids",),
            {0: "batch", 1: "length"},
            (Shape("prefill-1x512", "forward", 1, 512), Shape("decode-512", "decode", 1, 512)),
            (Judge("causal-lm", "wikitext2/valid.txt", "wikitext2/test.txt"),),
            items=40,
        ),
    )
}


@dataclass(frozen=True)
class Source:
    """A model on this machine: its folder, and the task made of the data that is here."""

    model: Model
    folder: Path
    data: Path
    seed: int = 0

    @cached_property
    def task(self) -> Any:
        """An `autoquant.tasks.Task`; its three splits are disjoint: calibration, search, certification."""
        from autoquant.models.loading import load_model
        from autoquant.tasks import make

        judge = next((judge for judge in self.model.judges if judge.there(self.data)), None)
        if judge is None:
            raise FileNotFoundError(f"{self.data / str(self.model.judges[0].data)} is not there: say --data FOLDER")
        loaded = load_model(str(self.folder), self.model.auto_class)
        return make(
            judge.task,
            self.data / judge.data if judge.data else None,
            loaded.processor,
            columns=dict(judge.columns),
            test_data=self.data / judge.test_data if judge.test_data else None,
            sizes={"calibration": 64, "search": self.model.items // 2, "certification": self.model.items},
            seed=self.seed,
            model=loaded.model,
        )

    def calibration(self, batch_size: int = 1) -> list[Arrays]:
        """Inputs for engines that calibrate: the calibration split, which no metric is read on."""
        rows = range(min(self.task.rows("calibration"), 128))
        groups = [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        return [self.arrays(self.task.batch("calibration", group)) for group in groups]

    def arrays(self, batch: Mapping[str, Any]) -> Arrays:
        """The model's inputs in a batch of the task, as numpy arrays in the order of `Model.inputs`."""
        return {name: np.ascontiguousarray(batch[name].numpy()) for name in self.model.inputs}
