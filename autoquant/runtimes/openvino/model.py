"""A compiled graph in the place of a torch model: same keyword arguments, same outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import modeling_outputs
from transformers.utils import ModelOutput

from autoquant.errors import CheckpointError, ModelError
from autoquant.runtimes.openvino import engine
from autoquant.runtimes.openvino.trace import SECTION

FLAGS = ("use_cache", "return_dict", "output_attentions", "output_hidden_states", "labels", "past_key_values")
"""Keywords of transformers models that may be given if they ask for nothing."""


class OpenVINOModel(nn.Module):
    """Calls a compiled graph with torch tensors on the CPU. It has no parameters and gives no gradients.

    Attributes:
        graph: the openvino.Model it was compiled from.
        config: of the transformers model, or None.
    """

    def __init__(self, graph: Any, config: Any = None) -> None:
        super().__init__()
        self.graph = graph
        self.config = config
        notes = {key: str(graph.get_rt_info([SECTION, key]).value) for key in ("base_dtype", "outputs", "returns")} if (
            graph.has_rt_info([SECTION, "base_dtype"])) else None  # fmt: skip
        if notes is None:
            raise CheckpointError("This OpenVINO graph was not written by autoquant; open it with openvino itself.")
        self.base_dtype = notes["base_dtype"]
        self.outputs = tuple(notes["outputs"].split(","))
        self.returns = notes["returns"]
        self.inputs = tuple(port.get_any_name() for port in graph.inputs)
        self.compiled = engine.Compiled(graph, self.base_dtype)
        self.eval()

    def forward(self, **inputs: Any) -> Any:
        missing = [name for name in self.inputs if not isinstance(inputs.get(name), Tensor)]
        asked = [name for name, value in inputs.items() if name not in self.inputs
                 and not (name in FLAGS and (value is None or value is False or name == "return_dict"))]  # fmt: skip
        if missing or asked:
            what = f"needs the tensor '{missing[0]}'" if missing else f"does not take '{asked[0]}'"
            raise ModelError(f"The exported model {what}. Its inputs: {', '.join(self.inputs)}.")
        found = self.compiled([inputs[name] for name in self.inputs])
        if self.returns == "Tensor":
            return found[0]
        if self.returns == "tuple":
            return tuple(found)
        kind = getattr(modeling_outputs, self.returns, ModelOutput)
        return kind(**dict(zip(self.outputs, found, strict=True)))

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.base_dtype)
