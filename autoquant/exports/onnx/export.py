"""ONNX: `model.onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from autoquant.errors import CheckpointError, UsageError
from autoquant.exports.export import Export
from autoquant.exports.onnx import engine
from autoquant.exports.onnx.record import ONNXLayers, to_onnx
from autoquant.runtimes import Runtime
from autoquant.runtimes.served import ServedModel


class ONNXModel(ServedModel):
    """A file that ONNX Runtime runs."""

    def __init__(self, path: Path, config: Any = None) -> None:
        session = engine.Session(path)
        super().__init__(session.inputs, session.notes, config)
        self.session = session

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        return self.session(tensors)


class ONNXExport(Export):
    """For ONNX Runtime; weights in int8, products in int8 where the layer map says so, floats computed in float32."""

    name: ClassVar[str] = "onnx"
    file: ClassVar[str] = "model.onnx"
    weights: ClassVar[str] = "model.onnx*"

    def missing(self) -> str | None:
        return engine.missing()

    def runtime(self) -> Runtime:
        if reason := self.missing():
            raise UsageError(reason)
        return ONNXLayers()

    def write(self, model: nn.Module, example: Mapping[str, Any], folder: Path) -> None:
        engine.save(to_onnx(model, example), folder / self.file)

    def note(self, base_dtype: str) -> str | None:
        return (
            None if base_dtype == "float32" else f"ONNX Runtime computes in float32 what the map has in {base_dtype}."
        )

    def open(self, folder: Path, config: Any) -> nn.Module:
        if not (folder / self.file).is_file():
            raise CheckpointError(f"{folder} has no {self.file}. Export it again.")
        return ONNXModel(folder / self.file, config)
