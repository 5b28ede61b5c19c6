"""Classify images: top-1 accuracy."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from autoquant.artifacts import fingerprint
from autoquant.tasks.classification import right
from autoquant.tasks.dataset import DataTask
from autoquant.tasks.facts import Facts, label_numbers
from autoquant.tasks.images import Images, read_sources
from autoquant.tasks.inputs import ImageRows, Inputs
from autoquant.tasks.splitting import assign


class ImageClassification(DataTask):
    """Rows and items are the images; an item's value is 1 where the model's top label is right, else 0."""

    name = "image-classification"
    auto_class = "AutoModelForImageClassification"
    metrics = ("accuracy",)

    def _build(self) -> Inputs:
        self.output_kind = self.facts.logits_kind
        source = self._need_data()
        sources, served = read_sources(source, self.test_data, self.columns)
        chosen = assign(served, self.seed, self.sizes, "images")
        labels = [number for images in sources for number in class_numbers(images, self.facts, source)]
        self._labels = {split: np.array([labels[i] for i in index]) for split, index in chosen.items()}
        return image_rows(sources, chosen, self.processor)

    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None) -> np.ndarray:
        return right(self._finite(split, reduced), self._labels[split])

    def fingerprint(self) -> str:
        return fingerprint([super().fingerprint(), {split: labels.tolist() for split, labels in self._labels.items()}])


def class_numbers(images: Images, facts: Facts, source: str) -> list[int]:
    """Labels as output numbers: by the class names the model knows, else by the number (or sorted order) given."""
    return label_numbers(images.labels, facts, source, images.names)


def image_rows(sources: list[Images], chosen: dict[str, list[int]], processor: object) -> ImageRows:
    """The images of every split, ready to be preprocessed."""
    openers = [opener for images in sources for opener in images.openers]
    digests = [digest for images in sources for digest in images.digests]
    return ImageRows(
        {split: [openers[i] for i in index] for split, index in chosen.items()},
        {split: [digests[i] for i in index] for split, index in chosen.items()},
        processor,
    )
