"""A module of autoquant run as a process of its own: how it is started, and what it says when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from autoquant import artifacts
from autoquant.errors import AutoquantError


def start(
    module: str, job: Mapping[str, Any], path: Path, *, environment: Mapping[str, str] | None = None, **streams: Any
) -> subprocess.Popen[str]:
    """`python -m module PATH`, where `job` is written; it asks no network.

    Args:
        environment: variables beside those of this process.
        streams: of `subprocess.Popen`.
    """
    artifacts.write_json(path, dict(job))
    return subprocess.Popen([*command(module), str(path)], env=offline(environment), text=True, **streams)


def command(module: str) -> list[str]:
    """What starts a module of this package as a process."""
    return [sys.executable, "-m", module]


def offline(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of such a process, which asks no network, and what is said of it in `more`."""
    own = {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **own, **(more or {})}


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process whose stderr is a pipe; returns what it wrote there. It is ended if the wait is interrupted."""
    try:
        return process.communicate()[1]
    except BaseException:
        process.kill()
        process.wait()
        raise


def stop(process: subprocess.Popen[str], *files: IO[Any]) -> None:
    """End it, and close its pipes and these files."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr, *files):
        if stream is not None:
            with suppress(BrokenPipeError):  # of what it did not live to read
                stream.close()


def last_words(said: str, code: int) -> str:
    """Why a process failed, from what it wrote to stderr."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    if code == -signal.SIGKILL:
        return "it was killed, most likely for lack of memory"
    return lines[-1] if lines else f"exit code {code}"


def exit_code_of(work: Callable[[], None]) -> int:
    """Do the work of a process; what went wrong becomes its last line on stderr, which the parent reads."""
    try:
        work()
    except AutoquantError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return error.exit_code
    return 0
