"""Recording: while a tape is open, every kernel call leaves its pointers and sizes on it (see graph/replay.py)."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

Tape = list[tuple[Callable[..., Any], tuple[Any, ...]]]
_tapes = threading.local()


def call(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Run a kernel; while a tape is being recorded, its pointers and sizes go onto it."""
    note(kernel, *arguments)
    return kernel(*arguments)


class Held:
    """A pointer among a call's arguments, whose memory lives as long as the call is on a tape."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._as_parameter_ = tensor, ctypes.c_void_p(tensor.data_ptr())


def note(function: Callable[..., Any], *arguments: Any) -> None:
    """What a wrapper did besides calling its kernel, and must be done again."""
    tape = getattr(_tapes, "tape", None)
    if tape is not None:
        tape.append((function, arguments))


def recorded() -> bool:
    return getattr(_tapes, "tape", None) is not None


def dense(x: Tensor) -> Tensor:
    """`x`, copied if its elements do not lie one after the other."""
    if x.is_contiguous():
        return x
    y = x.contiguous()
    note(y.copy_, x)
    return y


@contextlib.contextmanager
def recording() -> Iterator[Tape]:
    """While open, the kernels that this thread calls are put on a tape."""
    tape: Tape = []
    _tapes.tape = tape
    try:
        yield tape
    finally:
        _tapes.tape = None
