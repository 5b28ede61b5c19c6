"""Processes of `worker.py`, as the parent sees them: started with one job, asked on a pipe, killed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.models import Model

ROOT = Path(__file__).resolve().parents[2]


class FailedError(Exception):
    """A process gave no result; the message is the reason."""


@dataclass(frozen=True)
class Setting:
    """What all jobs of one run have in common.

    Attributes:
        work: folder of what is built, of inputs and logs; what is there already is used again.
        folders: name of a row → checkpoint folder of autoquant.
        memory: bytes that the engines of one group may hold together.
        patience: seconds that one answer may take.
    """

    models: Path
    data: Path
    work: Path
    folders: dict[str, Path]
    rounds: int
    seed: int
    memory: int
    patience: float
    failed: dict[str, str] = field(default_factory=dict)


class Worker:
    """A process of `worker.py`."""

    def __init__(self, setting: Setting, model: Model, name: str, job: str, threads: int, **more: Any):
        self.name, self.patience = name, setting.patience
        label = "-".join(str(part) for part in (job, model.name, name, more.get("label", ""), threads) if part != "")
        path = setting.work / "jobs" / f"{label}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "job": job, "model": model.name, "source": str(setting.models / model.name), "data": str(setting.data),
            "engine": name, "folders": {key: str(value) for key, value in setting.folders.items()},
            "threads": threads, "seed": setting.seed, **more,
        }  # fmt: skip
        path.write_text(json.dumps(content, indent=1))
        self._log = open(path.with_suffix(".log"), "w")  # noqa: SIM115 - closed in `stop`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", str(path)],
            cwd=ROOT,
            env=environment(setting.work, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """The next line. Raises FailedError when there is none in time, or when it is a reason."""
        stdout = self.process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], self.patience)[0]:
            raise FailedError(f"no answer in {self.patience:.0f} s")
        line = stdout.readline()
        if not line:
            raise FailedError(f"the process ended with code {self.process.wait()}")
        found = json.loads(line)
        for key in ("unsupported", "error"):
            if key in found:
                raise FailedError(found[key])
        return found

    def round(self) -> float:
        """One timed round, in ms a result."""
        assert self.process.stdin is not None
        try:
            print("go", file=self.process.stdin, flush=True)
        except BrokenPipeError as error:
            raise FailedError(f"the process ended with code {self.process.wait()}") from error
        return self.answer()["ms"]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


def environment(work: Path, threads: int) -> dict[str, str]:
    """As users have it, but for the number of threads: each engine's threads wait as they do by themselves."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "BITSANDBYTES_NOWELCOME": "1",
    }  # fmt: skip


def ask(setting: Setting, model: Model, name: str, job: str, threads: int, **more: Any) -> dict[str, Any]:
    """A job of one answer."""
    worker = Worker(setting, model, name, job, threads, **more)
    try:
        return worker.answer()
    finally:
        worker.stop()
