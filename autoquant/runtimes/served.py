"""A graph of another engine in the place of a torch model: same keyword arguments, same outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import modeling_outputs
from transformers.utils import ModelOutput

from autoquant.errors import CheckpointError, ModelError

FLAGS = ("use_cache", "return_dict", "output_attentions", "output_hidden_states", "labels", "cache", "past_key_values")
"""Keywords of transformers models that may be given if they ask for nothing."""


class ServedModel(nn.Module):
    """Calls an engine with torch tensors on the CPU. It has no parameters and gives no gradients.

    Args:
        inputs: names of the graph's inputs, in its order.
        notes: what was written beside the graph: `base_dtype`, `outputs` and `returns` (see `signature.Signature`).
        config: of the transformers model, or None.

    Raises:
        CheckpointError: the graph has no such notes.
    """

    def __init__(self, inputs: Sequence[str], notes: Mapping[str, str], config: Any = None) -> None:
        super().__init__()
        if lacking := {"base_dtype", "outputs", "returns"} - set(notes):
            raise CheckpointError(
                f"This graph was not written by autoquant: it does not note its {min(lacking)}. Open it with its engine."
            )
        self.config = config
        self.inputs = tuple(inputs)
        self.base_dtype = notes["base_dtype"]
        self.outputs = tuple(notes["outputs"].split(","))
        self.returns = notes["returns"]
        self.eval()

    @abstractmethod
    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """The graph's outputs for its inputs, in its order."""

    def forward(self, **inputs: Any) -> Any:
        missing = [name for name in self.inputs if not isinstance(inputs.get(name), Tensor)]
        asked = [name for name, value in inputs.items() if name not in self.inputs and not _asks_nothing(name, value)]
        if missing or asked:
            what = f"needs the tensor '{missing[0]}'" if missing else f"does not take '{asked[0]}'"
            raise ModelError(f"The exported model {what}. Its inputs: {', '.join(self.inputs)}.")
        found = self.run([inputs[name] for name in self.inputs])
        if self.returns == "Tensor":
            return found[0]
        if self.returns == "tuple":
            return tuple(found)
        kind = getattr(modeling_outputs, self.returns, ModelOutput)
        return kind(**dict(zip(self.outputs, found, strict=True)))


def _asks_nothing(name: str, value: Any) -> bool:
    return name in FLAGS and (value is None or value is False or name == "return_dict")
