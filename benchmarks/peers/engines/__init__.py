"""The engines. A new one is a file and its lines here."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.engines.autoquant_engine import AutoquantFolder, AutoquantUniform
from benchmarks.peers.engines.base import Engine
from benchmarks.peers.engines.bitsandbytes_engine import Bitsandbytes
from benchmarks.peers.engines.onnxruntime_engine import OnnxRuntime
from benchmarks.peers.engines.openvino_engine import OpenVino
from benchmarks.peers.engines.pt2e_engine import Pt2e
from benchmarks.peers.engines.torch_engine import TorchDynamic, TorchFloat
from benchmarks.peers.engines.torchao_engine import TorchAO

REFERENCE = "torch-fp32"
"""Speed is given as a multiple of this one, and outputs are compared with its outputs."""

ENGINES: dict[str, Engine] = {
    REFERENCE: TorchFloat("float32"),
    "torch-bf16": TorchFloat("bfloat16"),
    "torch-fp16": TorchFloat("float16"),
    "torch-fp32-compiled": TorchFloat("float32", compiled=True),
    "torch-bf16-compiled": TorchFloat("bfloat16", compiled=True),
    "torch-fp16-compiled": TorchFloat("float16", compiled=True),
    "torch-quantize-dynamic": TorchDynamic(),
    "torchao-int8-dynamic": TorchAO("dynamic", "float32"),
    "torchao-int8-dynamic-bf16": TorchAO("dynamic", "bfloat16"),
    "torchao-int8-weights": TorchAO("weights", "float32"),
    "torchao-int8-weights-bf16": TorchAO("weights", "bfloat16"),
    "torchao-pt2e-int8-static-bf16": Pt2e(dynamic=False),
    "torchao-pt2e-int8-dynamic-bf16": Pt2e(dynamic=True),
    "onnxruntime-fp32": OnnxRuntime("fp32"),
    "onnxruntime-int8-dynamic": OnnxRuntime("dynamic"),
    "onnxruntime-int8-static": OnnxRuntime("static"),
    "openvino-fp32": OpenVino("fp32"),
    "openvino-bf16": OpenVino("fp16", hint="bf16"),
    "openvino-int8-weights-bf16": OpenVino("weights", hint="bf16"),
    "openvino-int8": OpenVino("int8"),
    "openvino-int8-bf16": OpenVino("int8", hint="bf16"),
    "openvino-int8-accuracy-control": OpenVino("int8-accuracy-control", hint="bf16", slow=True),
    "bitsandbytes-int8": Bitsandbytes(),
    "autoquant-uniform-int8-bf16": AutoquantUniform(),
}


def engine(name: str, folders: dict[str, Path]) -> Engine:
    """An engine of the table, or one that serves a checkpoint folder of autoquant."""
    return AutoquantFolder(folders[name]) if name in folders else ENGINES[name]
