"""The benchmarks that are scripts: each says how it is used, and what it concludes follows from its figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
PARTS = ("__init__.py", "common.py", "certification_outcomes.py")
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name not in PARTS)
PACKAGES = sorted(path.parent.name for path in FOLDER.glob("*/__main__.py"))

CONCLUSIONS = """
from pathlib import Path
from isa import Found, differences, verdict
one = Found("all", Path(), "bfloat16", {"a": "int8", "b": "int8"}, {})
two = Found("AVX2", Path(), "float32", {"a": "int8", "b": "float32"}, {})
ms = {("all", "all"): (10.0, 0.1), ("all", "AVX2"): (20.0, 0.1), ("AVX2", "all"): (29.9, 0.2), ("AVX2", "AVX2"): (30.0, 0.2)}
assert verdict("all", ms) == "fastest"
assert verdict("AVX2", ms) == "tied with all"
assert verdict("AVX2", ms | {("AVX2", "all"): (25.0, 0.2)}) == "slower than all"
assert differences([one, two]) == [{"maps": "all – AVX2", "layers that differ": 1, "of": 2, "base differs": "yes"}]
"""


def script(*arguments: str, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_help_and_a_row_in_the_readme(name: str) -> None:
    done = script(name, "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--json" in done.stdout
    assert f"`{name}`" in (FOLDER / "README.md").read_text(encoding="utf8")


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_has_help_and_a_row_in_the_readme(name: str) -> None:
    done = script("-m", f"benchmarks.{name}", "--help", cwd=FOLDER.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--models" in done.stdout
    assert f"`{name}/`" in (FOLDER / "README.md").read_text(encoding="utf8")


def test_a_map_is_the_fastest_on_its_own_hardware_or_it_is_said() -> None:
    done = script("-c", CONCLUSIONS)
    assert done.returncode == 0, done.stderr[-2000:]
