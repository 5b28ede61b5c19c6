"""Kernels for processors with AVX-512 VNNI, and AMX where there is that, on torch tensors: each is one call into C (kernels.c).

`available()` says whether this processor has them. ONEDNN_MAX_CPU_ISA, which caps what oneDNN uses, caps them as well, so
that one machine can stand in for several.
"""

from autoquant.runtimes.native.avx512.attention import PackedAttention, attention, rotary
from autoquant.runtimes.native.avx512.decoding import CachedAttention
from autoquant.runtimes.native.avx512.library import available, runs, takes, use_amx, uses_amx
from autoquant.runtimes.native.avx512.linear import PANEL, PackedLinear, PackedPair, can_join, join
from autoquant.runtimes.native.avx512.rows import OUT_OF_RANGE, Norm, embed
from autoquant.runtimes.native.avx512.tape import Tape, recording

__all__ = [
    "OUT_OF_RANGE",
    "PANEL",
    "CachedAttention",
    "Norm",
    "PackedAttention",
    "PackedLinear",
    "PackedPair",
    "Tape",
    "attention",
    "available",
    "can_join",
    "embed",
    "join",
    "recording",
    "rotary",
    "runs",
    "takes",
    "use_amx",
    "uses_amx",
]
