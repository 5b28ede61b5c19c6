"""A search by real processes whose judges only sleep, and the killing of any of them at any moment.

Judges write what they begin and end into a file of their own accord, so that what the study says can be checked against it.
Processes are forked: a process that starts anew spends seconds on imports.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import optuna

from autoquant.search import Outcome, Problem, lead, open_study, run_search, work
from autoquant.search.crew import Process, Processes
from autoquant.search.ledger import from_params
from autoquant.search.study import join_study
from tests import synthetic

NAME = "drill"


class Fork:
    """A forked process that looks like a `subprocess.Popen`; it ends with its parent."""

    alive: list[Fork] = []  # noqa: RUF012

    def __init__(self, run: Callable[[], object]) -> None:
        read, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(write)
            for other in Fork.alive:
                other.stdin.close()  # or a sibling would keep it open
            threading.Thread(target=lambda: (os.read(read, 1), os._exit(0)), daemon=True).start()
            code = 1
            try:
                run()
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        os.close(read)
        self.stdin = os.fdopen(write, "w")
        self.returncode: int | None = None
        Fork.alive.append(self)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                Fork.alive.remove(self)
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Forks(Processes):
    """The crew of a drill."""

    def __init__(self, count: int, run: Callable[[str], object]) -> None:
        super().__init__(count, [])
        self.run = run

    def _start(self) -> None:
        self.started += 1
        name = f"{self.prefix}{self.started}"
        self.processes.append(Process(name, Fork(lambda: self.run(name))))  # type: ignore[arg-type]


@dataclass
class Drill:
    """One search of every map there is.

    Attributes:
        place: where the study is: a journal file, or a URL.
        folder: where judges write down what they do.
        seconds: that a judge sleeps.
        workers: processes that the main process starts; 0: it judges by itself.
    """

    place: Path | str
    folder: Path
    seconds: float = 0.02
    workers: int = 2
    trials: int = 10**6
    strategy: str = "exhaustive"
    problem: Problem = field(default_factory=lambda: synthetic.make(2))

    @property
    def log(self) -> Path:
        return self.folder / "judged.log"

    def judge(self, who: str) -> Callable[[str, dict[str, str]], Outcome]:
        """No map is within the budget, so that none is too dear for a look."""
        inner = synthetic.Judge(self.problem, limit=-1.0)

        def evaluate(base: str, layers: dict[str, str]) -> Outcome:
            choice = self.problem.choice_of(base, layers)
            self._write("begin", who, base, choice)
            time.sleep(self.seconds)
            self._write("end", who, base, choice)
            return inner(base, layers)

        return evaluate

    def _write(self, what: str, who: str, base: str, choice: tuple[int, ...]) -> None:
        with open(self.log, "a") as file:
            file.write(f"{what} {who} {base} {','.join(map(str, choice))}\n")

    def main(self) -> str:
        """The main process: why the search ended."""
        study = open_study(self.place, self.problem, self.strategy, 0, NAME)
        crew = Forks(self.workers, self.help) if self.workers else None
        _, reason = run_search(
            self.problem, self.judge("main"), study, trials=self.trials, starts=(), crew=crew, say=self._say
        )
        (self.folder / "reason").write_text(reason)
        return reason

    def help(self, name: str) -> tuple[int, str]:
        """A worker's process."""
        (self.folder / f"pid-{os.getpid()}").write_text(name)
        return work(self.problem, join_study(self.place, NAME), name, self.judge(name), say=self._say, lonely=60)

    def _say(self, text: str) -> None:
        with open(self.folder / "said.log", "a") as file:
            file.write(text + "\n")

    def said(self) -> str:
        path = self.folder / "said.log"
        return path.read_text() if path.exists() else ""

    def pids(self) -> dict[int, str]:
        """Of workers that are alive, with their names."""
        found = {int(path.name.removeprefix("pid-")): path.read_text() for path in self.folder.glob("pid-*")}
        return {pid: name for pid, name in found.items() if _is_alive(pid)}

    def trials_told(self) -> list[optuna.trial.FrozenTrial]:
        return [t for t in join_study(self.place, NAME).trials if t.state == optuna.trial.TrialState.COMPLETE]

    def maps(self) -> list[tuple[str, tuple[int, ...]]]:
        """Every map of the space."""
        choices = product(*(range(len(options)) for options in self.problem.options))
        return [(base, choice) for choice in choices for base in self.problem.base_dtypes]

    def account(self) -> dict[str, int]:
        """What was lost and doubled, by the study and by what the judges wrote.

        A map whose judge was killed is begun again; one that was judged, but whose judge died before it could tell, too.
        """
        told = Counter(from_params(self.problem, t.params) for t in self.trials_told())
        lines = [line.split() for line in self.log.read_text().splitlines()]
        begun = Counter((base, choice) for what, _, base, choice in lines if what == "begin")
        ended = Counter((base, choice) for what, _, base, choice in lines if what == "end")
        maps = self.maps()
        written = {(base, ",".join(map(str, choice))) for base, choice in maps}
        return {
            "maps": len(maps),
            "told": told.total(),
            "lost": sum(told[one] == 0 for one in maps),
            "doubled": sum(told[one] > 1 for one in maps),
            "never judged, but told": len(written - ended.keys()),
            "begun again": begun.total() - len(begun),
            "judged again": ended.total() - len(ended),
        }


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_with_kills(
    drill: Drill, kills: int, seed: int, *, restart: Callable[[], None] | None = None, between: tuple[float, float] = (0.05, 0.4),
    joined: int = 1, main: bool = True,
) -> Counter:  # fmt: skip
    """Search to the end while processes are killed (−9) at random moments, in turns; who was killed, how often.

    Args:
        restart: kills the database and starts it again.
        joined: workers that come from outside; one that is killed is replaced.
        main: whether the main process is killed, too, and resumed.
    """
    chance, done = random.Random(seed), Counter()
    kinds = ["worker", *["database"] * (restart is not None), "worker", *["main"] * main]
    lead.DEATHS = 10**6  # a map that was begun twice by bad luck is not at fault
    leader = Fork(drill.main)
    outside = [Fork(lambda n=n: _wait_and_help(drill, f"outside-{n}")) for n in range(joined)]
    number = joined
    try:
        while leader.poll() is None or leader.returncode:
            if leader.poll() is not None:
                leader = Fork(drill.main)
            for place, one in enumerate(outside):
                if one.poll() is not None and one.returncode:
                    number += 1
                    outside[place] = Fork(lambda n=number: _wait_and_help(drill, f"outside-{n}"))
            time.sleep(chance.uniform(*between))
            if done.total() >= kills:
                continue
            whom = kinds[done.total() % len(kinds)]
            if whom == "database":
                assert restart is not None
                restart()
            elif whom == "main":
                leader.kill()
            elif pids := drill.pids():
                os.kill(chance.choice(list(pids)), signal.SIGKILL)
            else:
                continue
            done[whom] += 1
    finally:
        for one in (leader, *outside):
            one.kill()
    return done


def _wait_and_help(drill: Drill, name: str) -> None:
    from autoquant.errors import AutoquantError

    while True:
        try:
            drill.help(name)
            return
        except AutoquantError:  # the search has not begun
            time.sleep(0.05)
