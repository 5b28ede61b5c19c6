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


def onnx_constants(folder: Path) -> list[np.ndarray]:
    """Weights lie as (in, out) in ONNX; embeddings and the rest as in torch: both ways are returned."""
    import onnx

    found = [onnx.numpy_helper.to_array(item) for item in onnx.load(folder / "model.onnx").graph.initializer]
    return found + [array.T for array in found if array.ndim == 2 and array.dtype == np.int8]


CONSTANTS = {"openvino": openvino_constants, "onnx": onnx_constants}
"""Format → the constants of an export, as they are stored."""


def openvino_products(folder: Path) -> int:
    from autoquant.exports import load

    found = load(folder).compiled.operations()
    return sum(op["type"] in ("FullyConnected", "MatMul") and op["kernel"].endswith("i8") for op in found)


def onnx_products(folder: Path) -> int:
    import onnx

    from autoquant.exports.onnx.engine import Session

    Session(folder / "model.onnx", dump=folder.parent / "optimized.onnx")
    nodes = onnx.load(folder.parent / "optimized.onnx").graph.node
    return sum(node.op_type in ("MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm") for node in nodes)


INTEGER_PRODUCTS = {"openvino": openvino_products, "onnx": onnx_products}
"""Format → how many products the engine really computes in integers, after all that it does to the graph."""

ALONE = {
    "onnx": """
import sys, numpy, onnxruntime
folder = sys.argv[1]
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
found = session.run(None, dict(numpy.load(folder + "/inputs.npz")))
numpy.savez(folder + "/outputs.npz", **{port.name: value for port, value in zip(session.get_outputs(), found)})
assert not {"torch", "transformers", "autoquant"} & set(sys.modules)
""",
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
""",
}
"""Format → a program that runs inputs.npz through an export with nothing but its engine, and leaves outputs.npz."""
