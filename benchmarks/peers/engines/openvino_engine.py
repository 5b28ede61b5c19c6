"""OpenVINO on the CPU: float, NNCF's weight compression, post-training int8, and int8 with accuracy control.

Weights that stay float are stored as float16, except in the float32 row; `hint` is the precision that they are computed in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.engines.base import Engine, Round, Served, UnsupportedError
from benchmarks.peers.models import Arrays, Shape, Source

FILE = "model.xml"
BUDGET = 0.01
"""What accuracy control may lose, in the task's unit (a share of it for perplexity): autoquant's default budget."""
QUANTIZING = ("weights", "int8", "int8-accuracy-control")


@dataclass(frozen=True)
class OpenVino(Engine):
    """`weights`: what is stored: `fp32`, `fp16`, or one of `QUANTIZING`."""

    weights: str
    hint: str = "f32"
    slow: bool = False
    packages: ClassVar[dict[str, str]] = {"openvino": "openvino"}

    @property
    def artefact(self) -> str:
        return f"openvino-{self.weights}"

    def missing(self) -> str | None:
        import importlib.util

        if self.weights in QUANTIZING and not importlib.util.find_spec("nncf"):
            return "not installed: pip install openvino nncf"
        return super().missing()

    def build(self, source: Source, kind: str, folder: Path) -> None:
        import openvino

        if kind == "decode" and self.weights.startswith("int8"):
            raise UnsupportedError("no static ranges for a graph with a cache: see the row with compressed weights")
        graph = convert(source, kind)
        if self.weights in QUANTIZING:
            graph = {"weights": compress, "int8": quantize, "int8-accuracy-control": control}[self.weights](
                source, graph
            )
        openvino.save_model(graph, folder / FILE, compress_to_fp16=self.weights != "fp32")

    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        import openvino

        core = openvino.Core()
        graph = core.read_model(folder / FILE)
        if shape is not None and shape.kind == "forward":
            sizes = {0: shape.batch, 1: shape.length}
            known = {place: sizes[place] for place in source.model.axes}
            graph.reshape({item: _fixed(item.partial_shape, known) for item in graph.inputs})
        settings = {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.hint,
        }  # fmt: skip
        return OvServed(core.compile_model(graph, "CPU", settings))


class OvServed(Served):
    def __init__(self, compiled: Any):
        self.request = compiled.create_infer_request()

    def forward(self, inputs: Arrays) -> Round:
        return Round(lambda: self._infer(inputs))

    def decode(self, inputs: Arrays) -> Round:
        """The cache is a state of the graph; before each round it is set back to the given one."""
        import openvino

        states = {state.name: state for state in self.request.query_state()}
        cache = {
            states[state_name(name)]: openvino.Tensor(np.ascontiguousarray(array))
            for name, array in inputs.items()
            if name != "tokens"
        }
        filled = inputs["key_0"].shape[2]
        tokens = np.split(np.ascontiguousarray(inputs["tokens"]), inputs["tokens"].shape[1], axis=1)
        beam = np.zeros(1, np.int64)
        fed = [
            {"input_ids": token, "position_ids": np.full((1, 1), filled + number), "beam": beam}
            for number, token in enumerate(tokens)
        ]

        def before() -> None:
            for state, tensor in cache.items():
                state.state = tensor

        def call() -> Any:
            for step in fed:
                logits = self._infer(step)
            return logits

        return Round(call, before, len(fed))

    def _infer(self, inputs: Arrays) -> Any:
        return self.request.infer(inputs, share_inputs=True, share_outputs=True)[0]

    def array(self, output: Any) -> np.ndarray:
        return np.array(output, dtype=np.float32)


def state_name(name: str) -> str:
    return f"{name}present_{name}"


def convert(source: Source, kind: str) -> Any:
    """The float32 graph with the names of `export.names`; for decoding, the cache is made a state of the graph."""
    import openvino
    from openvino.frontend import OpConversionFailure
    from openvino.passes import MakeStateful, Manager

    from benchmarks.peers.engines.export import export_onnx, names, traceable

    module, inputs = traceable(source, kind, beams=True)
    names_in, names_out = names(source, kind, len(inputs), beams=True)
    try:
        graph = openvino.convert_model(module, example_input=inputs)
    except OpConversionFailure:  # its reader of torch's graphs lacks an operation; its reader of ONNX may have it
        with tempfile.TemporaryDirectory() as scratch:
            export_onnx(source, kind, Path(scratch) / "model.onnx")
            graph = openvino.convert_model(Path(scratch) / "model.onnx")
    for item, name in (*zip(graph.inputs, names_in, strict=True), *zip(graph.outputs, names_out, strict=True)):
        item.get_tensor().set_names({name})
    if kind == "decode":
        pasts = names_in[3:]
        heads, width = inputs[3].shape[1], inputs[3].shape[3]
        shapes = {"input_ids": [-1, 1], "position_ids": [-1, 1], "beam": [-1]}
        graph.reshape(shapes | {name: [-1, heads, -1, width] for name in pasts})
        manager = Manager()
        manager.register_pass(MakeStateful(dict(zip(pasts, names_out[1:], strict=True))))
        manager.run_passes(graph)
    else:
        graph.reshape({item: _fixed(item.partial_shape, dict.fromkeys(source.model.axes, -1)) for item in graph.inputs})
    return graph


def _fixed(shape: Any, known: dict[int, int | None]) -> list[int]:
    return [known.get(place, size.get_length() if size.is_static else -1) for place, size in enumerate(shape)]


def compress(source: Source, graph: Any) -> Any:
    """NNCF's weight-only int8 of all linears and embeddings, which OpenVINO recommends for language models."""
    import nncf

    return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)


def _calibration(source: Source) -> Any:
    import nncf

    return nncf.Dataset(source.calibration())


def quantize(source: Source, graph: Any) -> Any:
    import nncf

    return nncf.quantize(graph, _calibration(source), model_type=nncf.ModelType.TRANSFORMER)


def control(source: Source, graph: Any, seen: list[float] | None = None, budget: float = BUDGET) -> Any:
    """`quantize_with_accuracy_control`, judged by the task on its search split: certification data stays unseen.

    Args:
        seen: every value of the metric is appended to it.
    """
    import nncf

    from autoquant.evaluation import evaluate_split
    from benchmarks.peers.engines.adapter import AsModule

    task = source.task
    first = [] if seen is None else seen

    def validate(compiled: Any, rows: Iterable[Any]) -> tuple[float | None, None]:
        if len(list(rows)) == 1:  # NNCF asks what it may rank layers by: outputs, not the metric of one row at a time
            return None, None
        model = AsModule(OvServed(compiled), source)
        value = evaluate_split(model, task, "search", batch_size=8).metric
        first.append(value)
        value = value / first[0] if task.relative else value
        return (value if task.higher_is_better else -value), None

    return nncf.quantize_with_accuracy_control(
        graph,
        _calibration(source),
        nncf.Dataset(source.calibration()),  # `validate` has its own rows; NNCF wants to be given some
        validate,
        max_drop=budget,
        drop_type=nncf.DropType.ABSOLUTE,
        model_type=nncf.ModelType.TRANSFORMER,
    )
