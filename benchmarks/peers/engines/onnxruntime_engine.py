"""ONNX Runtime: float32, and its own dynamic and static int8 quantization."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.engines.base import Engine, Round, Served, UnsupportedError
from benchmarks.peers.models import Arrays, Shape, Source

FILE = "model.onnx"


@dataclass(frozen=True)
class OnnxRuntime(Engine):
    """`how`: `fp32`, `dynamic` (activations per tensor at run time) or `static` (Q/DQ with calibrated ranges)."""

    how: str
    packages: ClassVar[dict[str, str]] = {"onnxruntime": "onnxruntime", "onnx": "onnx", "onnxscript": "onnxscript"}

    @property
    def artefact(self) -> str:
        return f"onnxruntime-{self.how}"

    def warm_imports(self, source: Source) -> None:
        import onnxruntime  # noqa: F401 - onnx and onnxscript are needed for building only

    def build(self, source: Source, kind: str, folder: Path) -> None:
        from benchmarks.peers.engines.export import export_onnx

        if kind == "decode" and self.how == "static":
            raise UnsupportedError(
                "no static ranges for a graph with a cache: they would have to be calibrated on caches"
            )
        exported = folder / "exported.onnx"
        export_onnx(source, kind, exported)
        {"fp32": fuse, "dynamic": dynamic, "static": static}[self.how](source, kind, exported, folder / FILE)
        for path in folder.iterdir():
            if path.name != FILE:
                path.unlink()

    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # Without this its threads keep spinning after a round, while the next engine is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if shape is not None and shape.kind == "forward":
            for place, name in source.model.axes.items():
                options.add_free_dimension_override_by_name(name, (shape.batch, shape.length)[place])
        return OrtServed(onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"]))


class OrtServed(Served):
    def __init__(self, session: Any):
        self.session = session
        self.inputs = [item.name for item in session.get_inputs()]
        self.outputs = [item.name for item in session.get_outputs()]

    def forward(self, inputs: Arrays) -> Round:
        fed = {name: inputs[name] for name in self.inputs}
        return Round(lambda: self.session.run(None, fed)[0])

    def decode(self, inputs: Arrays) -> Round:
        """Keys and values stay in ONNX Runtime's own values from one token to the next."""
        from onnxruntime import OrtValue

        def value(array: np.ndarray) -> Any:
            return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

        pasts = self.inputs[2:]
        start = {name: value(inputs[name]) for name in pasts}
        filled = inputs["key_0"].shape[2]
        tokens = [value(token) for token in np.split(inputs["tokens"], inputs["tokens"].shape[1], axis=1)]
        places = [value(np.full((1, 1), filled + number)) for number in range(len(tokens))]

        def call() -> Any:
            cache = dict(start)
            for token, place in zip(tokens, places, strict=True):
                fed = {"input_ids": token, "position_ids": place, **cache}
                logits, *present = self.session.run_with_ort_values(self.outputs, fed)
                cache = dict(zip(pasts, present, strict=True))
            return logits.numpy()

        return Round(call, steps=len(tokens))

    def array(self, output: Any) -> np.ndarray:
        return np.asarray(output, dtype=np.float32)


def fuse(source: Source, kind: str, exported: Path, out: Path) -> None:
    """With the optimizer that ONNX Runtime has for the architecture; all other fusions happen when it loads the graph."""
    if source.model.fusion is None or kind == "decode":
        exported.rename(out)
        return
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(exported), model_type=source.model.fusion, opt_level=0).save_model_to_file(str(out))


def dynamic(source: Source, kind: str, exported: Path, out: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    fused = exported.with_name("fused.onnx")
    fuse(source, kind, exported, fused)
    graph = onnx.load(fused)
    del graph.graph.value_info[
        :
    ]  # shapes that the exporter noted; the quantizer infers its own and trips on a difference
    onnx.save(graph, fused)
    # Shape inference does not know ONNX Runtime's fused operators; what it cannot tell is float.
    known = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(fused, out, per_channel=True, weight_type=QuantType.QInt8, extra_options=known)


def static(source: Source, kind: str, exported: Path, out: Path) -> None:
    """Q/DQ around the products of the unfused graph: ONNX Runtime fuses these patterns itself when it loads the graph."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows: Iterator[Arrays] = iter(source.calibration())

        def get_next(self) -> Arrays | None:
            return next(self.rows, None)

    prepared = exported.with_name("prepared.onnx")
    quant_pre_process(exported, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", "Conv", "Gather"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": False},
    )
