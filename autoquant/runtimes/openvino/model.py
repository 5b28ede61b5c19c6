"""A model that OpenVINO has compiled as a whole."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autoquant.runtimes.openvino import engine
from autoquant.runtimes.openvino.convert import SECTION
from autoquant.runtimes.served import ServedModel


class OpenVINOModel(ServedModel):
    """Attributes: `graph`, the openvino.Model it was compiled from, and `compiled`, which tells what really runs."""

    def __init__(self, graph: Any, config: Any = None) -> None:
        keys = [key for key in ("base_dtype", "outputs", "returns") if graph.has_rt_info([SECTION, key])]
        notes = {key: str(graph.get_rt_info([SECTION, key]).value) for key in keys}
        super().__init__([port.get_any_name() for port in graph.inputs], notes, config)
        self.graph = graph
        self.compiled = engine.Compiled(graph, self.base_dtype)

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        return self.compiled(tensors)
