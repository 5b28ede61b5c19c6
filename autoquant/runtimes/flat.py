"""A model as a function of a fixed list of tensors: the form in which engines record it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.errors import ModelError
from autoquant.runtimes.portable import recording


@dataclass(frozen=True)
class Signature:
    """Names of the inputs and outputs, in order, and what the model wraps its outputs in.

    Attributes:
        returns: class name of a transformers output, or `Tensor` or `tuple`.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    returns: str


class Flat(nn.Module):
    """`model` with tensors in and a tuple of tensors out, computing in float32; the model itself is left unchanged."""

    def __init__(self, model: nn.Module, example: Mapping[str, Any]) -> None:
        super().__init__()
        # Of nn.Module: transformers' own method refuses a model that was loaded from quantized weights.
        self.model = nn.Module.float(copy.deepcopy(model)).eval().requires_grad_(False)
        for module in self.model.modules():  # engines patch models by this note, in ways of their own
            getattr(module, "config", self).__dict__.pop("quantization_config", None)
        self.fixed = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
        names = tuple(name for name, value in example.items() if isinstance(value, Tensor))
        with torch.no_grad(), recording():
            output = self.model(**{name: example[name] for name in names}, **self.fixed)
        self.signature = Signature(names, _fields(output), type(output).__name__)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.signature.inputs, tensors, strict=True)), **self.fixed)
        if isinstance(output, Tensor):
            return (output,)
        if isinstance(output, Mapping):
            return tuple(output[name] for name in self.signature.outputs)
        return tuple(value for value in output if isinstance(value, Tensor))


def example_inputs(example: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a batch of at least two rows: a recorder takes a size of 1 for a constant."""
    tensors = {name: value.cpu() for name, value in example.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError("The example batch holds no tensor; a model is recorded from the tensors of a batch.")
    return {
        name: value if len(value) > 1 else value.repeat(2, *[1] * (value.ndim - 1)) for name, value in tensors.items()
    }


def free_axes(tensor: Tensor) -> tuple[int, ...]:
    """Axes whose size may change from call to call: rows and positions of ids and masks, rows of everything else."""
    return (0, 1) if tensor.ndim == 2 and not tensor.is_floating_point() else (0,)


def _fields(output: Any) -> tuple[str, ...]:
    if isinstance(output, Tensor):
        return ("output",)
    if isinstance(output, Mapping):
        return tuple(str(name) for name, value in output.items() if isinstance(value, Tensor))
    if isinstance(output, Sequence):
        return tuple(f"output_{i}" for i, value in enumerate(v for v in output if isinstance(v, Tensor)))
    raise ModelError(
        f"The model returns a {type(output).__name__}; tensors, tuples and transformers' outputs can be exported."
    )
