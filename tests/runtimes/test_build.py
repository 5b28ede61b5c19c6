"""Kernels are compiled for the instructions that torch's own are capped to."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from autoquant.runtimes.native import build


@pytest.mark.parametrize(
    ("cap", "without", "keeps"),
    [
        (None, (), ("avx512f", "avx512bf16")),
        ("DEFAULT", (), ("avx512f", "avx512bf16")),
        ("avx512_core_vnni", ("-mno-avx512bf16",), ("avx512f", "avx512vnni")),
        ("AVX2", ("-mno-avx512f",), ("avx2",)),
        ("AVX512_CORE_BF16", (), ("avx512bf16",)),
    ],
)
def test_flags_follow_the_cap(
    cap: str | None, without: tuple[str, ...], keeps: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def compiler(command: list[str], **more: Any) -> None:
        seen.append(command)
        raise OSError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if cap is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    monkeypatch.setattr(build.shutil, "which", lambda name: "/usr/bin/cc")
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(subprocess, "run", compiler)
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    assert build.load_library.__wrapped__(source) is None
    assert tuple(flag for flag in seen[0] if flag.startswith("-mno-")) == without
    assert not any(f"-mno-{name}" in seen[0] for name in keeps)


@pytest.mark.parametrize(
    ("cap", "vnni", "bf16"),
    [
        ("DEFAULT", True, True), ("ALL", True, True), ("AVX10_1_512", True, True), ("AVX512_CORE_AMX", True, True),
        ("avx512_core_vnni", True, False), ("AVX512_CORE", False, False), ("AVX2", False, False), ("SSE41", False, False),
    ],
)  # fmt: skip
def test_what_a_cap_leaves_on(cap: str, vnni: bool, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert (build.allows("avx512vnni"), build.allows("avx512bf16")) == (vnni, bf16)


def test_a_cap_has_a_library_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what was built without a cap would be loaded under it."""
    names = set()

    def compiler(command: list[str], **more: Any) -> None:
        names.add(Path(command[command.index("-o") + 1]).name)
        raise OSError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build.shutil, "which", lambda name: "/usr/bin/cc")
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(subprocess, "run", compiler)
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    for cap in ("DEFAULT", "AVX512_CORE_VNNI", "AVX2"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
        build.load_library.__wrapped__(source)
    assert len(names) == 3
