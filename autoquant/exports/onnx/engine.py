"""Where onnx and onnxruntime are imported: build nodes, and run a file."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoquant.errors import CheckpointError, ModelError, UsageError
from autoquant.runtimes.operators import NODES

INSTALL = "pip install 'autoquant-search[onnx]'"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
DOMAIN = "autoquant"
"""Of the nodes that stand for layers until these are written."""
LARGE = 2**31 - 2**20
"""Bytes above which the weights go to a file of their own: a protobuf message holds no more."""


def missing() -> str | None:
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"{' and '.join(lacking)}: not installed. Type: {INSTALL}" if lacking else None


@functools.cache
def onnx() -> Any:
    """Raises UsageError: it is not installed."""
    if reason := missing():
        raise UsageError(reason)
    return importlib.import_module("onnx")


def translations() -> dict[Any, Any]:
    """Operator that stands for a layer → what the exporter is to write: one node of a domain of our own, with its name."""
    onnx()
    script = importlib.import_module("onnxscript")
    schemas = importlib.import_module("onnx.defs").OpSchema
    kinds = schemas.AttrType
    schema = schemas(
        "Layer", DOMAIN, 1,
        inputs=[schemas.FormalParameter("x", "T")],
        outputs=[schemas.FormalParameter("y", "U")],
        type_constraints=[("T", ["tensor(float)", "tensor(int64)"], ""), ("U", ["tensor(float)"], "")],
        attributes=[schemas.Attribute("name", kinds.STRING, ""), schemas.Attribute("rank", kinds.INT, "")],
    )  # fmt: skip
    write = script.values.Op(script.values.Opset(DOMAIN, 1), "Layer", schema)

    def layer(x, name: str, width: int, dtype: int):
        return write(x, name=name, rank=len(x.shape))

    def convolution(x, name: str, width: int, stride: Sequence[int], reach: Sequence[int], dtype: int):
        return write(x, name=name, rank=4)

    return dict(zip(NODES, (layer, convolution), strict=True))


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
    return onnx().helper.make_node(kind, list(inputs), [output], name=output, **attributes)


def initializer(name: str, tensor: Tensor) -> Any:
    """The very bytes of `tensor` under a name."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has none
        kind, raw = onnx().TensorProto.BFLOAT16, tensor.view(torch.int16).numpy().tobytes()
        return onnx().helper.make_tensor(name, kind, list(tensor.shape), raw, raw=True)
    return onnx().numpy_helper.from_array(tensor.numpy(), name)


def array(initializer: Any) -> np.ndarray:
    return onnx().numpy_helper.to_array(initializer)


def save(model: Any, path: Path) -> None:
    large = sum(len(item.raw_data) for item in model.graph.initializer) > LARGE
    onnx().save_model(model, str(path), save_as_external_data=large, location=f"{path.name}.data" if large else None)


class Session:
    """A file opened by ONNX Runtime on the CPU, with as many threads as torch has.

    Raises:
        CheckpointError: it cannot be opened.
    """

    def __init__(self, path: Path, dump: Path | None = None) -> None:
        onnx()
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Without VNNI, sums of two products would saturate: rather slower than other numbers than the map's.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if dump is not None:
            options.optimized_model_filepath = str(dump)
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own kinds, which share no base class
            first = (str(error).strip().splitlines() or ["no message"])[0]
            raise CheckpointError(f"{path} cannot be read by ONNX Runtime: {first} Export it again.") from error
        self.inputs = [port.name for port in self.session.get_inputs()]
        self.notes = dict(self.session.get_modelmeta().custom_metadata_map)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: tensor.detach().numpy() for name, tensor in zip(self.inputs, inputs, strict=True)}
        try:
            return [torch.from_numpy(value) for value in self.session.run(None, arrays)]
        except Exception as error:  # as above
            raise ModelError(f"ONNX Runtime cannot run this batch: {str(error).strip().splitlines()[0]}") from error
