"""What is not needed is given back, and nothing else changes."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoquant.memory import MappedFiles, peak, prefer_huge_pages, recycled, reset_peak, trim
from autoquant.runtimes.native import avx512
from autoquant.runtimes.torch_runtime import Int8Linear
from autoquant.schemes import SCHEMES, quantize

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident(path: Path) -> int:
    """KB of a mapped file that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def mapped(path: Path) -> dict[str, Tensor]:
    tensors = {name: torch.arange(2**20, dtype=torch.int32) + number for number, name in enumerate("ab")}
    save_file(tensors, path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in "ab"}


@linux
def test_pages_of_a_file_are_given_back_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    a, b = mapped(path).values()
    total = int(a.sum()) + int(b.sum())
    whole = resident(path)
    assert whole >= 8000, "the file is mapped, and was read"
    files = MappedFiles()
    files.give_back(a.data_ptr(), a.nbytes)
    assert resident(path) <= whole - 4000
    files.give_back_all()
    assert resident(path) <= 8
    assert int(a.sum()) + int(b.sum()) == total and a[-1] == 2**20 - 1


@linux
def test_large_memory_comes_in_huge_pages_and_small_does_not() -> None:
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this machine gives no huge pages")

    def huge(size: int) -> int:
        """KB of huge pages that writing so many bytes takes."""
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            view = ctypes.c_char.from_buffer(memory)
            address = ctypes.addressof(view)
            del view  # a buffer that is lent cannot be closed
            prefer_huge_pages(address, size)
            ctypes.memset(address, 1, size)
            lines, inside = Path("/proc/self/smaps").read_text().splitlines(), False
            for line in lines:
                if "-" in line.split()[0]:
                    low, high = (int(part, 16) for part in line.split()[0].split("-"))
                    inside = low < address + size and high > address + size // 2
                elif inside and line.startswith("AnonHugePages:"):
                    return int(line.split()[1])
        return 0

    assert huge(64 * 2**20) > 0 == huge(3 * 2**20)


@linux
def test_memory_that_is_no_such_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.other"
    a, _ = mapped(path).values()
    own = torch.arange(2**20)
    total, before = int(a.sum()), resident(path)
    files = MappedFiles()
    for tensor in (own, a):
        files.give_back(tensor.data_ptr(), tensor.nbytes)
    files.give_back_all()
    trim()
    assert resident(path) == before and int(a.sum()) == total
    assert torch.equal(own, torch.arange(2**20))


@pytest.mark.skipif(not avx512.available(), reason="no AVX-512 VNNI or no C compiler: nothing is packed here")
@pytest.mark.parametrize("name", ["int8-channel-sym/a8-token", "int8-channel-asym"])
def test_a_layer_holds_its_weight_once(name: str) -> None:
    """Packed from the beginning, where it is; plain again where it moves to."""
    scheme = SCHEMES[name]
    assert scheme.weights is not None
    weight = quantize(torch.randn(96, 64), scheme.weights, scale_dtype=torch.float32, name="x")
    layer = Int8Linear(weight, torch.randn(96), scheme.input, torch.float32, None)
    assert layer.weight.numel() == 0 and layer._packed is not None
    x = torch.randn(3, 64)
    right = layer(x)
    kept = layer.to("cpu").float()._packed
    assert kept is not None and torch.equal(kept.unpack(), weight.values) and torch.equal(layer(x), right)
    layer.to(torch.bfloat16)
    assert layer._packed is None
    codes = layer.weight if scheme.input is None else layer.weight.t()
    assert torch.equal(codes, weight.values)


@linux
def test_a_peak_begins_without_what_was_freed() -> None:
    """A model that moves into memory which was freed before must count in full."""
    size = 64 * 2**20
    pieces = [bytearray(b"x" * 60_000) for _ in range(size // 60_000)]  # small: malloc keeps what is freed of them
    last = bytearray(b"x" * 60_000)  # keeps the heap from shrinking by itself
    del pieces
    before = reset_peak()
    again = [bytearray(b"x" * 60_000) for _ in range(size // 60_000)]
    assert peak() - before > size * 0.9
    del again, last


SIZE = 96 * 2**20
"""More than malloc ever keeps by itself."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def faults_of_a_second_pass() -> int:
    """Pages that this process has to be given for memory that it has just had and freed."""
    faults = 0
    for _ in range(2):
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        memory = ctypes.create_string_buffer(SIZE)  # by calloc
        memory[::4096] = b"x" * (SIZE // 4096)
        del memory
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def before_while_and_after() -> list[tuple[int, int, int]]:
    """Of each: (pages of a second pass, bytes by which this process is larger then than before the first, and afterwards)."""
    found, begin = [], resident_bytes()
    for around in (contextlib.nullcontext, recycled, contextlib.nullcontext):
        with around():
            faults, kept = faults_of_a_second_pass(), resident_bytes() - begin
        found.append((faults, kept, resident_bytes() - begin))
    return found


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_large_memory_is_used_again_while_it_is_recycled_and_given_back_then() -> None:
    """In a process of its own: large memory may lie in a hole of the heap that other tests have left, and would stay there."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        measured = pool.submit(before_while_and_after).result()
    (_, before, _), (faults, kept, _), (_, after, _) = measured
    assert before < SIZE // 4 and after < SIZE // 4
    assert faults < SIZE // mmap.PAGESIZE // 50 and kept > SIZE // 2
    assert all(left < SIZE // 4 for *_, left in measured)
