"""HiGHS 1.12, which SciPy 1.17 brings, prints a line of debugging to stdout whatever it is told (HiGHS issue 2783): into the
middle of a search's output, and of what a script reads from it."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

NOISE = b"HighsMipSolverData::"


@functools.cache
def _c() -> ctypes.CDLL:
    """Opening it takes milliseconds."""
    return ctypes.CDLL(None)


@contextmanager
def hushed() -> Iterator[None]:
    """Hold back what the process writes to its stdout; then pass on all but the lines that begin with `NOISE`."""
    try:
        flush = _c().fflush  # C's own buffer, which would be written after all
        sys.stdout.flush()
        stdout = os.dup(1)
    except (OSError, TypeError, AttributeError, ValueError):  # Windows, no stdout, or one that is closed
        yield
        return
    with tempfile.TemporaryFile() as held:
        flush(None)
        os.dup2(held.fileno(), 1)
        try:
            yield
        finally:
            flush(None)
            os.dup2(stdout, 1)
            os.close(stdout)
            held.seek(0)
            for line in held:
                if not line.startswith(NOISE):
                    os.write(1, line)
