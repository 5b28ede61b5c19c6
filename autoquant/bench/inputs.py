"""Random inputs of any shape for a model that comes without data: its speed depends on their shape alone."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.errors import ModelError
from autoquant.tasks.facts import Facts
from autoquant.tasks.outputs import no_cache

UNLIMITED = 10**9
"""Tokenizers that know no longest row say a number beyond this."""


class RandomInputs(ABC):
    """Makes the arguments of one forward pass.

    Attributes:
        kind: `text`, `causal-lm` (a prefill: the logits of every position, no cache) or `images`.
        longest: tokens that the model takes at most; None where it does not say, and for images.
    """

    kind: str
    longest: int | None = None

    @abstractmethod
    def make(self, batch_size: int, seq_len: int | None) -> dict[str, Any]:
        """Keyword arguments of the model's forward, the same for the same shape."""


class Tokens(RandomInputs):
    """Token ids that are drawn uniformly, nothing of them padding."""

    reads: ClassVar[str] = "input_ids"

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        config = model.config.get_text_config()  # type: ignore[operator, union-attr]
        self.kind = "causal-lm" if Facts.of(model).head == "causal-lm" else "text"
        self._vocabulary = int(config.vocab_size)
        self._more = no_cache(model) if self.kind == "causal-lm" else {}
        names = getattr(tokenizer, "model_input_names", None) or ("input_ids", "attention_mask")
        taken = inspect.signature(model.forward).parameters
        self._names = [name for name in names if name in taken]
        limits = (getattr(tokenizer, "model_max_length", None), getattr(config, "max_position_embeddings", None))
        known = [int(limit) for limit in limits if limit and limit < UNLIMITED]
        self.longest = min(known, default=None)

    def make(self, batch_size: int, seq_len: int | None) -> dict[str, Any]:
        assert seq_len is not None
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self._vocabulary, (batch_size, seq_len), generator=generator)
        fill = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {name: fill.get(name, torch.zeros_like(ids)) for name in self._names} | self._more


class Pixels(RandomInputs):
    """Images of random pixels in the size that the image processor gives."""

    reads: ClassVar[str] = "pixel_values"
    kind = "images"

    def __init__(self, model: nn.Module, processor: Any) -> None:
        if processor is None:
            raise ModelError(
                "The model reads images, but its folder has no image processor (preprocessor_config.json), so their size "
                "is not known. Copy the file from the model that the checkpoint was made of."
            )
        image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        self._size = tuple(processor(images=image, return_tensors="pt")["pixel_values"].shape[1:])

    def make(self, batch_size: int, seq_len: int | None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(batch_size, *self._size, generator=generator)}


READERS: dict[str, type[Tokens] | type[Pixels]] = {reader.reads: reader for reader in (Tokens, Pixels)}
"""Name of a model's main input → what makes it up."""


def inputs_of(model: nn.Module, processor: Any) -> RandomInputs:
    """What this model reads.

    Raises:
        ModelError: it reads neither text nor images, or an image processor is missing.
    """
    name = getattr(model, "main_input_name", None)
    if name not in READERS or not hasattr(model, "config"):
        raise ModelError(
            f"{type(model).__name__} reads '{name}', which cannot be made up. autoquant bench knows models that read "
            f"{' or '.join(READERS)}."
        )
    return READERS[name](model, processor)
