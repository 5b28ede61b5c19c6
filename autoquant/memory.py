"""The highest resident memory of this process, and what the machine has left, read from Linux's /proc.

Elsewhere the highest is since the process began, and what is left is not known.
"""

from __future__ import annotations

import contextlib
import gc
import math
import resource
import sys
from pathlib import Path


def reset_peak() -> int:
    """Start a new peak; returns the resident bytes now."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def peak() -> int:
    """Highest resident bytes since `reset_peak`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available() -> float:
    """Bytes that new processes may take without swapping; infinite where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf
