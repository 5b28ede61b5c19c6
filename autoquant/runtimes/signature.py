"""How a graph's list of tensors is called outside: names of inputs and outputs, and what a model wraps its outputs in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_unflatten

from autoquant.errors import ModelError


@dataclass(frozen=True)
class Signature:
    """What is noted in an exported file, so that it can be opened as a model of the same kind.

    Attributes:
        base_dtype: of the checkpoint that the graph was made from.
        returns: class name of a transformers output, or `Tensor` or `tuple`.
    """

    base_dtype: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    returns: str

    @classmethod
    def of(cls, base_dtype: str, inputs: Sequence[str], outputs: TreeSpec) -> Signature:
        """Raises ModelError: the model returns something else than tensors, tuples and transformers' outputs of these."""
        count = outputs.num_leaves
        shape: Any = tree_unflatten(list(range(count)), outputs)
        names: tuple[str, ...] = ()
        if isinstance(shape, int):
            names = ("output",)
        elif isinstance(shape, Mapping):
            names = tuple(str(name) for name, value in shape.items() if isinstance(value, int))
        elif isinstance(shape, Sequence):
            names = tuple(f"output_{i}" for i, value in enumerate(shape) if isinstance(value, int))
        if len(names) != count:
            raise ModelError(
                f"The model returns a {type(shape).__name__} that holds more than tensors; tensors, tuples and transformers' "
                "outputs of tensors can be exported. Caches cannot."
            )
        kind = (
            "Tensor" if isinstance(shape, int) else "tuple" if isinstance(shape, list | tuple) else type(shape).__name__
        )
        return cls(base_dtype, tuple(inputs), names, kind)

    @property
    def notes(self) -> dict[str, str]:
        """As text, for the file."""
        return {"base_dtype": self.base_dtype, "outputs": ",".join(self.outputs), "returns": self.returns}


def plain(model: nn.Module) -> dict[str, Any]:
    """Values beside the tensors that a model is exported with: no cache, which is no tensor."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def tensors_in(example: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a batch, on the CPU, without the axes of a single position, which would be taken for constants.

    Raises:
        ModelError: there is none.
    """
    found = {name: value.cpu() for name, value in example.items() if isinstance(value, Tensor)}
    if not found:
        raise ModelError("The example batch holds no tensor; a model is captured from the tensors of a batch.")
    return {name: _long(value) if value.dim() == 2 else value for name, value in found.items()}


def _long(value: Tensor) -> Tensor:
    return value if value.shape[1] > 1 else torch.cat([value] * 7, 1)
