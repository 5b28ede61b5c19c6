"""Compile a C file once a machine with the system's C compiler, and load it.

Nothing is compiled where there is no compiler, or with AUTOQUANT_NATIVE=0. A library is cached under the user's cache
folder by the hash of its source, flags, compiler and processor. ONEDNN_MAX_CPU_ISA, which caps the instructions of torch's
int8 and bfloat16 products, caps these kernels, too: what is measured under it is what a processor without them does.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from autoquant.artifacts import cache_folder

FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")

_NO_TILES = ("-mno-amx-int8",)
WITHOUT = {
    **dict.fromkeys(("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"), ("-mno-avx512f", *_NO_TILES)),
    "AVX512_CORE": ("-mno-avx512vnni", "-mno-avx512bf16", *_NO_TILES),
    "AVX512_CORE_VNNI": ("-mno-avx512bf16", *_NO_TILES),
    **dict.fromkeys(("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512", "AVX10_2_512"), _NO_TILES),
}
"""Value of ONEDNN_MAX_CPU_ISA → compiler flags that keep the kernels to it; others cap nothing that the kernels use."""


def cap() -> str:
    """ONEDNN_MAX_CPU_ISA, "DEFAULT" where it is not set."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()


@functools.cache
def load_library(source: Path, extra: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """The compiled library of `source` and of the headers in the folder of its name.

    None where it cannot be had: torch operations then compute the same.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("AUTOQUANT_NATIVE") == "0" or compiler is None or platform.system() != "Linux":
        return None
    flags = (*FLAGS, *extra, *WITHOUT.get(cap(), ()))
    files = [source, *sorted((source.parent / source.stem).glob("*.h"))]
    text = b"".join(file.read_bytes() for file in files) + f"{compiler}{flags}{processor()}".encode()
    key = hashlib.sha256(text).hexdigest()[:16]
    target = cache_folder() / f"{source.stem}-{key}.so"
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                built = Path(scratch) / target.name
                subprocess.run(
                    [compiler, *flags, str(source), "-o", str(built), "-lm"], check=True, capture_output=True
                )
                os.replace(built, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None  # no usable compiler or cache folder


def allows(feature: str) -> bool:
    """Whether ONEDNN_MAX_CPU_ISA leaves an AVX-512 instruction set on, by the compiler's name for it."""
    return not {"-mno-avx512f", f"-mno-{feature}"} & set(WITHOUT.get(cap(), ()))


def processor() -> str:
    """The processor's features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.machine())
