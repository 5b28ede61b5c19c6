"""The resident memory of this process, what of it can be given back, and what the machine has left: from Linux's /proc.

Elsewhere the peak is since the process began, and what is left is not known.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import math
import mmap
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def reset_peak() -> int:
    """Start a new peak; returns the resident bytes now, without what was freed: else a model could move in there unseen."""
    gc.collect()
    trim()
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


class MappedFiles:
    """Files of one kind that this process had mapped into its memory when this was made, as safetensors are read.

    A page that was read stays resident as long as any tensor of its file lives. `give_back` says that it is not needed: it is
    read from the file again if it is, after all. Nothing may have been written into that memory. Linux only; elsewhere
    nothing happens.
    """

    def __init__(self, suffix: str = ".safetensors") -> None:
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        areas = [line.split()[0].split("-") for line in lines if line.endswith(suffix)]
        self.areas = [(int(start, 16), int(end, 16)) for start, end in areas]

    def give_back(self, address: int, size: int) -> None:
        """The whole pages of these bytes, if they lie in such a file."""
        start, end = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end and any(low <= start and end <= high for low, high in self.areas):
            _library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)

    def give_back_all(self) -> None:
        for low, high in self.areas:
            self.give_back(low, high - low)


def resident_files() -> list[tuple[int, int]]:
    """(address, bytes) of what this process has in its memory of files that it maps: of libraries, mostly. Linux only."""
    found: list[tuple[int, int]] = []
    with contextlib.suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as pages:
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            area, _, _, _, inode, *_ = line.split()
            if inode == "0":
                continue
            start, end = (int(part, 16) // mmap.PAGESIZE for part in area.split("-"))
            entries = np.frombuffer(os.pread(pages.fileno(), 8 * (end - start), 8 * start), np.uint64)
            # Documentation/admin-guide/mm/pagemap.rst of the kernel: 8 bytes a page, of which bit 63 is "present".
            edges = np.flatnonzero(np.diff(np.concatenate(([0], (entries >> np.uint64(63)).astype(np.int8), [0]))))
            for first, last in edges.reshape(-1, 2):
                found.append((int(start + first) * mmap.PAGESIZE, int(last - first) * mmap.PAGESIZE))
    return found


def populate(areas: list[tuple[int, int]]) -> None:
    """Have these pages in memory. A fork begins without its parent's pages of files, and would seem to grow as it runs code."""
    for address, size in areas:
        _library().madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), MADV_POPULATE_READ)


MADV_POPULATE_READ = 22
"""Linux 5.14 and later; before, an error, which changes nothing."""
HUGE = 2 * 2**20
"""Bytes of a huge page on x86."""


def prefer_huge_pages(address: int, size: int) -> None:
    """Have fresh memory of many MiB handed out in pages of 2 MiB: by 4 KiB, the first touch of 50 MB takes 20 ms and more.

    Memory of less than four such pages is left as it is; elsewhere than on Linux nothing happens.
    """
    start, end = -(-address // HUGE) * HUGE, (address + size) // HUGE * HUGE
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if end - start >= 3 * HUGE and advice is not None:
        _library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


@contextlib.contextmanager
def recycled() -> Iterator[None]:
    """While open, malloc hands out again what was freed instead of giving it back to the system; then it gives all back.

    Of a large tensor each page is otherwise a new one, which costs a fault and is filled with zeros first: with the logits of a
    language model that is a good part of a pass. Not around what is timed, or whose memory is told: users' processes do not
    do this. Nothing happens where there is no glibc.
    """
    mallopt = getattr(_library(), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        # Where malloc's own adjustment ends in a process that has freed large tensors; it is off once anything is set.
        for option, value in ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 64 * 2**20)):
            mallopt(option, value)
        trim()


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Of mallopt(3), malloc.h."""


def trim() -> None:
    """Give back what malloc keeps of the memory that was freed; nothing happens where there is no glibc."""
    with contextlib.suppress(AttributeError, OSError):
        _library().malloc_trim(0)


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def available() -> float:
    """Bytes that new processes may take without swapping; infinite where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf
