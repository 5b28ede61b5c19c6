"""Runtimes: modules that really run a scheme on a device. A new one is one file and one line here."""

from autoquant.errors import UsageError, pick
from autoquant.runtimes.base import Runtime
from autoquant.runtimes.openvino import OpenVINORuntime
from autoquant.runtimes.torch_runtime import TorchRuntime

RUNTIMES: dict[str, type[Runtime]] = {"torch": TorchRuntime, "openvino": OpenVINORuntime}


HALVES = ("bfloat16", "float16")


def make_runtime(name: str) -> Runtime:
    """Raises UsageError: there is none of this name, or it is not installed."""
    kind = pick(RUNTIMES, name, "runtime")
    if reason := kind.missing():
        raise UsageError(reason)
    return kind()


def unusable(kind: type[Runtime], device: str = "cpu") -> str | None:
    """Why a search cannot run on a runtime here, or None. It needs a half precision, which every map is compared with."""
    if reason := kind.missing():
        return reason
    if device.split(":")[0] not in kind.devices:
        return f"it runs on {' and '.join(kind.devices)} only"
    reasons = [kind().cannot_compute(half) for half in HALVES]
    return reasons[0] if all(reasons) else None


__all__ = ["RUNTIMES", "OpenVINORuntime", "Runtime", "TorchRuntime", "make_runtime", "unusable"]
