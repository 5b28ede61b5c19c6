"""Fresh processes without the seconds that importing torch and transformers takes: forks of one that has done only that.

The server, `python -m autoquant.forkserver MODULE`, imports the module and never runs anything of it: what a fork inherits is
code. On one pipe it is asked, a line of JSON each, to run `MODULE.main(path)` in a fork; on another it answers with the
fork's number, and at its end with its exit code. It ends with the process that started it. Linux only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoquant.lazy import importing
from autoquant.memory import populate, resident_files
from autoquant.processes import command, offline

WORKER = "autoquant.certify.worker"
"""The module whose jobs are run in fresh processes; named here so that its server can start before anything else is imported."""


class Forks:
    """A server and its forks, one at a time.

    Args:
        module: whose `main(path)` a fork runs.
    """

    def __init__(self, module: str) -> None:
        asked, self._ask = os.pipe()
        self._answers, answered = os.pipe()
        try:
            self._server = subprocess.Popen(
                [*command("autoquant.forkserver"), module, str(asked), str(answered)],
                env=offline(), pass_fds=(asked, answered), start_new_session=True,  # Ctrl-C is for the parent
            )  # fmt: skip
        finally:
            os.close(asked)
            os.close(answered)
        self._reader = os.fdopen(self._answers)

    def run(self, path: Path, errors: Path) -> int | None:
        """The exit code of `main(path)` in a fork, negative of a signal; None if the server is gone, and nothing was run.

        Args:
            errors: the file that the fork's stderr goes to.
        """
        try:
            os.write(self._ask, (json.dumps({"path": str(path), "errors": str(errors)}) + "\n").encode())
            pid = self._reader.readline()
        except OSError:
            pid = ""
        if not pid:
            return None
        try:
            code = self._reader.readline()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
            self._reader.readline()
            raise
        return int(code) if code else -signal.SIGKILL

    def close(self) -> None:
        """End the server, and a fork that nobody waits for any more."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        os.close(self._ask)
        self._reader.close()


_running: dict[str, Forks] = {}


@contextlib.contextmanager
def serving(module: str = WORKER) -> Iterator[None]:
    """While open, `forks_of(module)` gives forks; the server imports the module while this process goes on. Also a decorator."""
    if sys.platform != "linux" or module in _running:
        yield
        return
    _running[module] = Forks(module)
    try:
        yield
    finally:
        _running.pop(module).close()


def forks_of(module: str) -> Forks | None:
    return _running.get(module)


def main(name: str, asked: int, answered: int) -> None:
    with importing():
        module = importlib.import_module(name)
    gc.freeze()  # no fork looks through what was imported for garbage, which takes a fifth of a second
    code_pages = resident_files()
    with os.fdopen(asked) as requests:
        for line in requests:
            request = json.loads(line)
            if (pid := os.fork()) == 0:
                _run(module, code_pages, request)
            os.write(answered, f"{pid}\n".encode())
            _, status = os.waitpid(pid, 0)
            os.write(answered, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _run(module: Any, code_pages: list[tuple[int, int]], request: dict[str, str]) -> None:
    """In the fork. It ends here, whatever happens."""
    code = 1
    try:
        os.dup2(os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        populate(code_pages)  # what the job then needs more is its own
        code = module.main(request["path"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
