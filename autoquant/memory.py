"""The highest resident memory of this process, read from Linux's /proc; elsewhere since the process began."""

from __future__ import annotations

import contextlib
import gc
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
