"""The `openvino` runtime: layers as compiled graphs, and whole models compiled at once. Needs the extra [openvino]."""

from autoquant.runtimes.openvino.convert import captured, sign, to_openvino
from autoquant.runtimes.openvino.engine import missing, read_graph, save_graph
from autoquant.runtimes.openvino.model import OpenVINOModel
from autoquant.runtimes.openvino.runtime import OpenVINORuntime

__all__ = ["OpenVINOModel", "OpenVINORuntime", "captured", "missing", "read_graph", "save_graph", "sign", "to_openvino"]
