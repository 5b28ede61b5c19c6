"""A small batch of the inputs that a model takes, from its tokenizer or image processor: what a graph is recorded with."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.errors import ModelError

ROWS, POSITIONS = 2, 16


def example_for(model: nn.Module, processor: Any) -> dict[str, Tensor]:
    """Two rows; the values do not matter, the names and shapes do. Text has a padded position in the second row.

    Raises:
        ModelError: there is no processor to ask, or the model takes neither ids nor pixels.
    """
    if processor is None:
        raise ModelError(
            "The folder has no tokenizer or image processor to make an example batch from. In Python, give example={name: "
            "tensor}."
        )
    name = getattr(model, "main_input_name", "input_ids")
    if name == "pixel_values":
        image = np.zeros((64, 64, 3), dtype=np.uint8)
        pixels = processor(images=[image] * ROWS, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.float()}
    if name != "input_ids":
        raise ModelError(
            f"A {type(model).__name__} takes '{name}'; models of text (input_ids) and images can be exported."
        )
    encoded = processor("one two three four", return_attention_mask=True)
    length = len(encoded["input_ids"])
    taken = inspect.signature(model.forward).parameters
    found = {}
    for key, values in encoded.items():
        if key in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            row = torch.tensor(values, dtype=torch.long).repeat(-(-POSITIONS // length))[:POSITIONS]
            found[key] = row.repeat(ROWS, 1)
    if "attention_mask" in found:
        found["attention_mask"][-1, -1] = 0
    return found
