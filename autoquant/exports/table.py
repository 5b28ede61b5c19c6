"""The table of exports."""

from __future__ import annotations

from pathlib import Path

from autoquant.exports.export import Export
from autoquant.exports.onnx import ONNXExport
from autoquant.exports.openvino import OpenVINOExport

RECORD = "layer_map.yaml"
"""The layer map in the folder of a checkpoint or an export."""
EXPORTS: dict[str, Export] = {"openvino": OpenVINOExport(), "onnx": ONNXExport()}


def export_in(folder: str | Path) -> Export | None:
    """The export that a folder holds; None if it is something else, such as a checkpoint."""
    return next((export for export in EXPORTS.values() if (Path(folder) / export.file).is_file()), None)
