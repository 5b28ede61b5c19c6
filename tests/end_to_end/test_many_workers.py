"""Searches by several processes through the command line, on a tiny real model, with kill −9 and a real database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from autoquant.cli import main
from autoquant.search import join_study
from tests.jobs import arguments, read
from tests.search.postgres import missing, server

pytestmark = pytest.mark.slow


def workers_of(run: Path) -> list[int]:
    """Processes that the main process of a run has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"worker" in words and b"--as" in words and str(run).encode() in words:
            found.append(int(path.parent.name))
    return found


def command(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autoquant", *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_two_workers_one_of_which_is_killed_and_one_that_joins(workplace: Path, model: Path, data: Path) -> None:
    out = workplace / "run"
    process = command(*arguments(model, data, out, "--workers", "2"))
    while not (out / "study.journal").exists() or not workers_of(out):
        assert process.poll() is None
        time.sleep(0.05)
    helper = command("worker", str(out), "--quiet")
    while not any(t.user_attrs.get("worker") for t in join_study(out / "study.journal").trials):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(workers_of(out)[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert "was killed by signal 9" in said
    assert helper.wait(60) == 0
    report = read(out)
    assert report["verdict"] == "PASS"
    numbers = [c["number"] for c in report["search"]["candidates"] if c["state"] != "skipped"]
    assert len(numbers) == len(set(numbers))
    assert len(numbers) == 8 or "promises more" in said, said
    left = join_study(out / "study.journal").trials
    assert all(t.state.is_finished() or "worker" not in t.user_attrs for t in left), "no map is left behind"
    assert any("2 workers judged maps at a time" in note for note in report["notes"])
    assert not workers_of(out)


def test_a_study_in_postgresql_whose_password_is_nowhere(
    workplace: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if why := missing():
        pytest.skip(why)
    out = workplace / "database"
    with server() as found:
        url = found.new()
        more = ("--workers", "2", "--storage", url)
        assert main([*arguments(model, data, out, *more), "--trials", "4"]) == 0
        settings = yaml.safe_load((out / "settings.yaml").read_text())
        assert settings["storage"] == url.replace("secret", "***") and settings["study"].startswith("database-")
        assert not (out / "study.journal").exists()
        assert main(["search", "--resume", str(out), "--trials", "5", "--storage", url]) == 0
        assert len(read(out)["search"]["candidates"]) >= 5
        assert main(["worker", str(out), "--quiet"]) == 0
        said = "".join(capfd.readouterr())
        assert "the search has ended: all 5 trials done" in said
        assert main(["search", "--resume", str(out), "--storage", "sqlite:////tmp/other.db"]) == 2
    written = "".join(
        path.read_text(errors="ignore") for path in out.rglob("*") if path.suffix in (".json", ".yaml", ".html")
    )
    assert "secret" not in written + said + "".join(capfd.readouterr())


def test_a_worker_without_a_search_says_what_to_wait_for(workplace: Path, model: Path, capsys) -> None:
    (workplace / "empty").mkdir()
    assert main(["worker", str(workplace / "empty")]) == 2
    (workplace / "empty" / "settings.yaml").write_text(f"model: {model}\n")
    assert main(["worker", str(workplace / "empty")]) == 2
    assert "3/5 search" in capsys.readouterr().err
