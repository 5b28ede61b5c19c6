"""Runtimes: modules that really run a scheme on a device. A new one is one file and one line here."""

from autoquant.runtimes.base import Runtime
from autoquant.runtimes.openvino import OpenVINORuntime
from autoquant.runtimes.torch_runtime import TorchRuntime

RUNTIMES: dict[str, type[Runtime]] = {"torch": TorchRuntime, "openvino": OpenVINORuntime}

__all__ = ["RUNTIMES", "OpenVINORuntime", "Runtime", "TorchRuntime"]
