"""The processes of this machine that evaluate maps: this one, or some that it starts.

A process that dies is replaced, unless it failed to load what it needs; its map is given to another one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO

from autoquant.errors import AutoquantError
from autoquant.search.roll import Roll

OWN = "own:"
"""What the name begins with of workers that live and die with the process that leads, unlike those that joined."""
MOST = 100
"""Processes that are started in one search."""
NOTE = "  note: "
"""What a line begins with that is to be kept for the report."""

Say = Callable[[str], None]


class Crew(ABC):
    """Whoever evaluates maps on this machine, as the process that leads sees them.

    Attributes:
        room_of_others: maps that a worker which joined may hold.
    """

    room_of_others = 1

    @abstractmethod
    def ready(self, roll: Roll) -> list[str]:
        """Who may be given a map."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether it is alive."""

    @abstractmethod
    def wait(self, say: Say, joined: bool, pause: float) -> None:
        """Return when something may have changed.

        Args:
            joined: somebody takes part.
            pause: seconds, where there is nothing to do.
        """

    @abstractmethod
    def stop(self) -> None:
        """End it; may be called twice."""

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Alone(Crew):
    """This process, which evaluates a map between two decisions.

    Workers that joined get one map ahead: they do not wait while this process is busy.
    """

    room_of_others = 2

    def __init__(self, work_once: Callable[[str], bool | None]) -> None:
        self.work_once, self.name = work_once, _prefix()

    def ready(self, roll: Roll) -> list[str]:
        return [self.name]

    def has(self, name: str) -> bool:
        return name == self.name

    def wait(self, say: Say, joined: bool, pause: float) -> None:
        if self.work_once(self.name) is None:
            time.sleep(pause)

    def stop(self) -> None:
        pass


@dataclass
class Process:
    """A worker that was started, and the last lines that it wrote."""

    name: str
    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    joined: bool = False


class Processes(Crew):
    """Some processes, each started with a command and its name; they end when their standard input does.

    Args:
        command: what starts one, its name appended.
        environment: variables beside those of this process.
        note: told what they write after `NOTE`.
    """

    def __init__(
        self, count: int, command: Sequence[str], environment: Mapping[str, str] | None = None,
        note: Say = lambda text: None,
    ) -> None:  # fmt: skip
        self.command, self.environment, self.note = list(command), dict(environment or {}), note
        self.prefix = f"{_prefix()}/"
        self.count, self.started, self.last = count, 0, ""
        self.processes: list[Process] = []

    def __enter__(self) -> Processes:
        for _ in range(self.count):
            self._start()
        return self

    def ready(self, roll: Roll) -> list[str]:
        alive = [process for process in self.processes if process.popen.poll() is None]
        if not all(process.joined for process in alive):
            roll.look()
            present = set(roll.present())
            for process in alive:
                process.joined |= process.name in present
        return [process.name for process in alive if process.joined]

    def has(self, name: str) -> bool:
        return any(process.name == name and process.popen.poll() is None for process in self.processes)

    def wait(self, say: Say, joined: bool, pause: float) -> None:
        for process in [p for p in self.processes if p.popen.poll() is not None]:
            self.processes.remove(process)
            code = process.popen.returncode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            last = f": {process.lines[-1]}" if process.lines and code >= 0 else ""
            self.last = f"worker {process.name.removeprefix(self.prefix)} {how}{last}"
            loads = process.joined or (code < 0 and any(other.joined for other in self.processes))
            if loads and self.started < MOST:
                say(f"{self.last}; its map is given to another worker, and a new one is started")
                self._start()
            else:
                say(self.last)
        if not self.processes and not joined:
            raise AutoquantError(f"No worker is left: {self.last}. What was found is kept; go on with --resume.")
        time.sleep(pause)

    def stop(self) -> None:
        for process in self.processes:
            assert process.popen.stdin is not None
            process.popen.stdin.close()
        for process in self.processes:
            try:
                process.popen.wait(5)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        self.processes = []

    def _start(self) -> None:
        self.started += 1
        name = f"{self.prefix}{self.started}"
        popen = subprocess.Popen(
            [*self.command, name], env={**os.environ, **self.environment}, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        process = Process(name, popen)
        self.processes.append(process)
        assert popen.stderr is not None
        threading.Thread(target=self._listen, args=(process, popen.stderr), daemon=True).start()

    def _listen(self, process: Process, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                if line.startswith(NOTE):
                    self.note(line.removeprefix(NOTE).rstrip())
                elif line.strip():
                    process.lines = [*process.lines[-5:], line.strip()]


def _prefix() -> str:
    return OWN + uuid.uuid4().hex[:6]


def leave_with_parent() -> None:
    """End this process when its standard input ends: its parent has died, or has no more work for it."""

    def watch() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
