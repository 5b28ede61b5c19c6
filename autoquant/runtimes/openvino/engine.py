"""Where openvino is imported: compile a graph and run it on torch tensors without copying the inputs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from autoquant.errors import CheckpointError, ModelError, UsageError

INSTALL = "pip install 'autoquant-search[openvino]'"

PRECISION = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""Base dtype → OpenVINO's name of it, also its INFERENCE_PRECISION_HINT."""

FAITHFUL = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Left alone, OpenVINO quantizes the inputs of weight-only layers in groups of 32: that is not what the map says."""


def missing() -> str | None:
    return None if importlib.util.find_spec("openvino") else f"OpenVINO is not installed. Type: {INSTALL}"


@functools.cache
def openvino() -> Any:
    """The package.

    Raises:
        UsageError: it is not installed.
    """
    if reason := missing():
        raise UsageError(reason)
    return importlib.import_module("openvino")


def opset() -> Any:
    openvino()
    return importlib.import_module("openvino.opset13")


@functools.cache
def decompositions() -> Any:
    """Of the operators that OpenVINO's frontend does not read."""
    from torch.export.decomp_utils import CustomDecompTable

    openvino()
    table = CustomDecompTable()
    kept = importlib.import_module("openvino.frontend.pytorch.torchdynamo.export_decompositions").ops_to_not_decompose()
    for operator in set(kept) & set(table.keys()):
        table.pop(operator)
    return table


def convert(module: fx.GraphModule, operators: Sequence[str], write: Callable[[Any], list[Any]]) -> Any:
    """The graph of a captured `module`; `write(context)` gives the outputs of each node that calls one of `operators`.

    OpenVINO's frontend is called directly, not through `openvino.convert_model`, which reports usage over the network.
    """
    openvino()
    extension = importlib.import_module("openvino.frontend.pytorch").ConversionExtension
    decoder = importlib.import_module("openvino.frontend.pytorch.fx_decoder").TorchFXPythonDecoder
    frontend = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    for operator in operators:
        frontend.add_extension(extension(operator, write))
    decoded = decoder(module, dynamic_shapes=True)  # has to live until the conversion is done
    return frontend.convert(frontend.load(decoded))


@functools.cache
def core() -> Any:
    return openvino().Core()


@functools.cache
def capabilities() -> frozenset[str]:
    """What this CPU computes natively, in OpenVINO's words: FP32, BF16, FP16, INT8, …"""
    return frozenset(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def cannot_compute(dtype: str) -> str | None:
    """Why this CPU does not compute in `dtype` with OpenVINO."""
    needs = {"float16": "FP16", "bfloat16": "BF16"}.get(dtype, "FP32")
    return None if needs in capabilities() else f"OpenVINO would compute {dtype} in float32 on this CPU"


def constant(tensor: Tensor) -> Any:
    """A Constant node with the very bytes of `tensor`."""
    return openvino().op.Constant(_shared(tensor.detach().cpu().contiguous()), shared_memory=False)


def save_graph(graph: Any, path: Path) -> None:
    """Write `path` (.xml) and the weights beside it (.bin), with the constants as they are."""
    openvino().save_model(graph, str(path), compress_to_fp16=False)


def read_graph(path: Path) -> Any:
    """Raises CheckpointError when OpenVINO cannot read the files."""
    try:
        return core().read_model(str(path))
    except RuntimeError as error:
        first = (str(error).strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(f"{path} cannot be read by OpenVINO: {first} Export it again.") from error


class Compiled:
    """A graph compiled for the CPU. Inputs are read in place; outputs are copied, for the next call overwrites them; calls wait
    for each other."""

    def __init__(self, model: Any, base_dtype: str, options: Mapping[str, Any] | None = None) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": "f32" if cannot_compute(base_dtype) else PRECISION[base_dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            **FAITHFUL,
        }
        self.model = core().compile_model(model, "CPU", {**settings, **(options or {})})
        self.request = self.model.create_infer_request()
        self.free = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        held = [tensor.detach().contiguous() for tensor in inputs]  # alive until the request is done
        with self.free:
            try:
                for number, tensor in enumerate(held):
                    self.request.set_input_tensor(number, _shared(tensor))
                self.request.infer()
            except RuntimeError as error:
                raise ModelError(f"OpenVINO cannot run this batch: {str(error).strip().splitlines()[-1]}") from error
            return [_copied(self.request.get_output_tensor(number)) for number in range(len(self.model.outputs))]

    def operations(self) -> list[dict[str, str]]:
        """What really runs: for each node of the executed graph its `name`, `type`, `kernel` and `precision`."""
        keys = {"type": "layerType", "kernel": "primitiveType", "precision": "runtimePrecision"}
        found = []
        for node in self.model.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            found.append({"name": node.get_friendly_name(), **{key: str(info[own].value) for key, own in keys.items()}})
        return found


def _shared(tensor: Tensor) -> Any:
    """An OpenVINO tensor over the same memory (contiguous, on the CPU). numpy has no bfloat16: it passes as int16."""
    ov = openvino()
    if tensor.dtype == torch.bfloat16:
        return ov.Tensor(tensor.view(torch.int16).numpy(), ov.Shape(list(tensor.shape)), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=True)


def _copied(tensor: Any) -> Tensor:
    """OpenVINO hands out bfloat16 under numpy's name of the other half precision."""
    data = tensor.data
    if tensor.element_type == openvino().Type.bf16:
        return torch.from_numpy(data.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(data.copy())
