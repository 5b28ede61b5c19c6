"""Forks of a process that has only imported: each begins anew, and whatever happens to one, or to the server, is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoquant import artifacts, forkserver
from autoquant.certify import worker
from tests.jobs import evaluation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux only")

WORK = """
import json, os, signal, sys, time
import numpy, scipy.linalg
runs = 0
def of_files():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssFile"))
imported = of_files()
def main(path):
    global runs
    runs += 1
    job = json.load(open(path))
    if "out" in job:
        told = {"runs": runs, "pid": os.getpid(), "parent": os.getppid(), "imported": imported, "now": of_files()}
        json.dump(told, open(job["out"], "w"))
    if job.get("sleep"):
        time.sleep(60)
    if job.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if job.get("fail"):
        raise ValueError("what went wrong")
    print("said", file=sys.stderr)
    return job.get("code", 0)
"""


@pytest.fixture
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[forkserver.Forks]:
    (tmp_path / "work_to_fork.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with forkserver.serving("work_to_fork"):
        found = forkserver.forks_of("work_to_fork")
        assert found is not None
        yield found
    assert forkserver.forks_of("work_to_fork") is None
    assert found._server.returncode is not None, "the server ends with the block"


def run(forks: forkserver.Forks, folder: Path, **job: Any) -> tuple[int | None, str]:
    path, errors = folder / "job.json", folder / "errors.log"
    path.write_text(json.dumps(job))
    code = forks.run(path, errors)
    return code, errors.read_text() if errors.is_file() else ""


def test_every_job_begins_anew_in_a_process_of_its_own(forks: forkserver.Forks, tmp_path: Path) -> None:
    told = []
    for number in range(2):
        assert run(forks, tmp_path, out=str(tmp_path / f"{number}.json")) == (0, "said\n")
        told.append(json.loads((tmp_path / f"{number}.json").read_text()))
    assert [one["runs"] for one in told] == [1, 1], "the server ran a job itself, and the next fork inherited that"
    assert told[0]["pid"] != told[1]["pid"] and {one["parent"] for one in told} == {forks._server.pid}


def test_a_fork_begins_with_the_code_in_memory_that_importing_has_read(forks: forkserver.Forks, tmp_path: Path) -> None:
    """Otherwise the pages of the libraries that it runs would be counted as memory of the model's."""
    run(forks, tmp_path, out=str(tmp_path / "out.json"))
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["imported"] > 10_000 and told["now"] > 0.9 * told["imported"]


def test_what_went_wrong_is_told_and_the_next_job_runs(forks: forkserver.Forks, tmp_path: Path) -> None:
    code, said = run(forks, tmp_path, fail=True)
    assert code == 1 and said.strip().endswith("ValueError: what went wrong")
    assert run(forks, tmp_path, die=True)[0] == -signal.SIGKILL
    assert run(forks, tmp_path, code=3) == (3, "said\n")


class Interrupted:
    """Answers of which some are read; then Ctrl-C is pressed, once."""

    def __init__(self, reader: Any, after: int) -> None:
        self.reader, self.after, self.lines = reader, after, []

    def readline(self) -> str:
        if len(self.lines) == self.after:
            self.lines.append("")
            raise KeyboardInterrupt
        self.lines.append(self.reader.readline())
        return self.lines[-1]


def test_an_interruption_while_the_server_imports_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would begin the job when it is ready, and whoever closes it would wait for its end."""
    (tmp_path / "work_to_fork.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with pytest.raises(KeyboardInterrupt), forkserver.serving("work_to_fork"):
        forks = forkserver.forks_of("work_to_fork")
        assert forks is not None
        reader, forks._reader = forks._reader, Interrupted(forks._reader, 0)  # type: ignore[assignment]
        try:
            run(forks, tmp_path, sleep=True)
        finally:
            forks._reader = reader
    with pytest.raises(ProcessLookupError):
        os.killpg(forks._server.pid, 0)


def test_an_interrupted_wait_ends_the_fork(forks: forkserver.Forks, tmp_path: Path) -> None:
    reader, forks._reader = forks._reader, Interrupted(forks._reader, 1)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        run(forks, tmp_path, sleep=True)
    assert forks._reader.lines[-1].strip() == str(-signal.SIGKILL), "the fork was ended, and the server said so"
    forks._reader = reader
    assert run(forks, tmp_path)[0] == 0


def test_without_its_server_nothing_is_run(forks: forkserver.Forks, tmp_path: Path) -> None:
    forks._server.kill()
    forks._server.wait()
    assert run(forks, tmp_path, out=str(tmp_path / "out.json"))[0] is None and not (tmp_path / "out.json").exists()


def test_a_measurement_is_the_same_in_a_fork_as_in_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is done all the same when the server has gone."""
    monkeypatch.setenv("AUTOQUANT_STATE", "none")
    job = evaluation(tmp_path)
    started: list[str] = []
    start = worker.start
    monkeypatch.setattr(worker, "start", lambda *args, **more: (started.append("new"), start(*args, **more))[1])
    alone = worker.run_job(job, tmp_path / "alone", "float32")
    with forkserver.serving():
        forked = worker.run_job(job, tmp_path / "forked", "float32")
        assert started == ["new"]
        forkserver.forks_of(forkserver.WORKER)._server.kill()
        last = worker.run_job(job, tmp_path / "last", "float32")
    assert started == ["new", "new"]
    values = [np.load(answer["values"])["values"] for answer in (alone, forked, last)]
    assert all(np.array_equal(values[0], other) for other in values[1:])
    assert alone["metric"] == forked["metric"] and forked["peak_memory_bytes"] > 0
    assert artifacts.read_json(tmp_path / "forked" / "float32.json")["items"] == 60
    assert not list((tmp_path / "forked").glob("*.log"))


COMMANDS = {
    "search": ["search", "nowhere"],
    "resume": ["search", "--resume", "nowhere"],
    "pick": ["pick", "nowhere", "--budget", "0.01"],
    "certify": ["certify", "nowhere"],
    "evaluate": ["evaluate", "nowhere"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_start_it_before_they_import_what_it_imports(tmp_path: Path, command: str) -> None:
    """Both import at the same time then, and a usage error ends it."""
    script = (
        "import sys\nfrom autoquant import cli, forkserver\nserving = forkserver.serving\n"
        "def watched(module=forkserver.WORKER):\n    print(module, 'torch' in sys.modules)\n    return serving(module)\n"
        "forkserver.serving = watched\nprint(cli.main(sys.argv[1:]), forkserver._running)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *COMMANDS[command]], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert said[0] == f"{forkserver.WORKER} False", done.stderr
    assert said[-1] in ("1 {}", "2 {}"), done.stderr
