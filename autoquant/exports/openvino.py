"""OpenVINO IR: `openvino_model.xml` and `.bin`, the names that optimum-intel looks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from autoquant.errors import CheckpointError
from autoquant.exports.export import Export
from autoquant.runtimes import OpenVINORuntime, Runtime
from autoquant.runtimes.openvino import OpenVINOModel, captured, missing, read_graph, save_graph, sign, to_openvino
from autoquant.runtimes.signature import plain


class OpenVINOExport(Export):
    """For `openvino.Core().read_model`; weights in int8, products in int8 where the layer map says so."""

    name: ClassVar[str] = "openvino"
    file: ClassVar[str] = "openvino_model.xml"
    weights: ClassVar[str] = "openvino_model.bin"

    def missing(self) -> str | None:
        return missing()

    def runtime(self) -> Runtime:
        return OpenVINORuntime()

    def write(self, model: nn.Module, example: Mapping[str, Any], folder: Path) -> None:
        found = captured(model, {**example, **plain(model)})
        save_graph(sign(to_openvino(found, model), found), folder / self.file)

    def note(self, base_dtype: str) -> str | None:
        if base_dtype != "float32":
            return None
        return (
            "By itself OpenVINO computes floats in bfloat16 where the CPU can: compile with INFERENCE_PRECISION_HINT=f32, as "
            "autoquant.load does."
        )

    def open(self, folder: Path, config: Any) -> nn.Module:
        for name in (self.file, self.weights):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} has no {name}. Export it again.")
        return OpenVINOModel(read_graph(folder / self.file), config)
