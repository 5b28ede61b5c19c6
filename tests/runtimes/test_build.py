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
        (None, (), ("avx512f", "avx512bf16", "amx-int8")),
        ("DEFAULT", (), ("avx512f", "avx512bf16", "amx-int8")),
        ("AVX512_CORE_AMX", (), ("avx512f", "avx512bf16", "amx-int8")),
        ("avx512_core_vnni", ("-mno-avx512bf16", "-mno-amx-int8"), ("avx512f", "avx512vnni")),
        ("AVX2", ("-mno-avx512f", "-mno-amx-int8"), ("avx2",)),
        ("AVX512_CORE_BF16", ("-mno-amx-int8",), ("avx512bf16",)),
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
    ("cap", "left"),
    [
        ("DEFAULT", "vnni bf16 amx"), ("ALL", "vnni bf16 amx"), ("AVX512_CORE_AMX", "vnni bf16 amx"),
        ("AVX10_1_512", "vnni bf16"), ("AVX512_CORE_FP16", "vnni bf16"), ("avx512_core_vnni", "vnni"),
        ("AVX512_CORE", ""), ("AVX2", ""), ("SSE41", ""),
    ],
)  # fmt: skip
def test_what_a_cap_leaves_on(cap: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    features = {"vnni": "avx512vnni", "bf16": "avx512bf16", "amx": "amx-int8"}
    assert " ".join(name for name, feature in features.items() if build.allows(feature)) == left


def test_a_header_that_changes_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()

    def compiler(command: list[str], **more: Any) -> None:
        names.add(Path(command[command.index("-o") + 1]).name)
        raise OSError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build.shutil, "which", lambda name: "/usr/bin/cc")
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(subprocess, "run", compiler)
    source, headers = tmp_path / "empty.c", tmp_path / "empty"
    source.write_text('#include "empty/numbers.h"\n')
    headers.mkdir()
    for text in ("int one;\n", "int two;\n"):
        (headers / "numbers.h").write_text(text)
        build.load_library.__wrapped__(source)
    assert len(names) == 2


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
