"""What is in an exported file, read with its engine and without autoquant; and scripts that run it in a fresh process."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def openvino_constants(folder: Path) -> list[np.ndarray]:
    import openvino

    graph = openvino.Core().read_model(str(folder / "openvino_model.xml"))
    nodes = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Constant"]
    return [
        _widened(node.data) if node.get_element_type() == openvino.Type.bf16 else np.array(node.data) for node in nodes
    ]


def _widened(data: np.ndarray) -> np.ndarray:
    """numpy has no bfloat16: OpenVINO hands its bits out as float16."""
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


CONSTANTS = {"openvino": openvino_constants}
"""Format → the constants of an export, as they are stored."""

ALONE = {
    "openvino": """
import sys, numpy, openvino
folder = sys.argv[1]
core = openvino.Core()
graph = core.read_model(folder + "/openvino_model.xml")
model = core.compile_model(graph, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
found = model(dict(numpy.load(folder + "/inputs.npz")))
names = [port.get_any_name() for port in graph.outputs]
numpy.savez(folder + "/outputs.npz", **{name: found[name] for name in names})
assert not {"torch", "transformers", "autoquant"} & set(sys.modules)
"""
}
"""Format → a program that runs inputs.npz through an export with nothing but its engine, and leaves outputs.npz."""
