"""Runtimes: modules that really run a scheme on a device. A new one is one file and one line here."""

from autoquant.errors import UsageError, pick
from autoquant.runtimes.base import Runtime
from autoquant.runtimes.openvino import OpenVINORuntime
from autoquant.runtimes.torch_runtime import TorchRuntime

RUNTIMES: dict[str, type[Runtime]] = {"torch": TorchRuntime, "openvino": OpenVINORuntime}


def make_runtime(name: str) -> Runtime:
    """Raises UsageError: there is none of this name, or it is not installed."""
    kind = pick(RUNTIMES, name, "runtime")
    if reason := kind.missing():
        raise UsageError(reason)
    return kind()


__all__ = ["RUNTIMES", "OpenVINORuntime", "Runtime", "TorchRuntime", "make_runtime"]
