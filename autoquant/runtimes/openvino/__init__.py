"""The `openvino` runtime: layers as compiled graphs, and whole models compiled at once. Needs the extra [openvino]."""

from autoquant.runtimes.openvino.engine import missing, read_graph, save_graph
from autoquant.runtimes.openvino.model import OpenVINOModel
from autoquant.runtimes.openvino.runtime import OpenVINORuntime
from autoquant.runtimes.openvino.trace import to_openvino

__all__ = ["OpenVINOModel", "OpenVINORuntime", "missing", "read_graph", "save_graph", "to_openvino"]
