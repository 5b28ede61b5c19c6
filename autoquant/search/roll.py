"""Who takes part in a search: each process counts up a beat in the study, and the others listen to it.

Clocks of machines are not compared: a process is there while its beat is seen to change, by the listener's own clock, and only
such time counts as silence in which the listener was awake itself. (A machine that slept takes nobody for dead.)
"""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import Any

import optuna

from autoquant.search.storages import patiently

BEAT = 4.0
"""Seconds between beats."""
SILENCE = 30.0
"""Seconds without a beat after which a process is taken for dead."""
LEAD = "lead"
"""Who proposes maps and decides; all others work."""
KEY = "autoquant:"
"""Study attribute of the system of a process."""


class Roll:
    """A thread that beats and listens while the block runs.

    Args:
        me: the name under which this process beats.
        about: what it says beside its beat.
    """

    def __init__(self, study: optuna.Study, me: str, **about: Any) -> None:
        self.study, self.me, self.about = study, me, about
        self._beats = 0
        self._awake, self._looked = 0.0, time.monotonic()
        self._heard: dict[str, tuple[dict[str, Any], float, bool]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"beat of {me}", daemon=True)

    def __enter__(self) -> Roll:
        patiently(self._beat)
        patiently(self.look)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(Exception):
            self.say(left=True)

    def say(self, **about: Any) -> None:
        """Change what is said beside the beat, at once."""
        self.about |= about
        self._beat()

    def heard(self, name: str) -> dict[str, Any]:
        """What a process said last; nothing if it was never heard of."""
        return self._heard.get(name, ({}, 0.0, False))[0]

    def silent(self, name: str) -> bool:
        """Whether it has left, or not been heard of for too long."""
        said, at, _ = self._heard.get(name, ({"left": True}, 0.0, False))
        return bool(said.get("left")) or self._awake - at > SILENCE

    def present(self) -> list[str]:
        """The others that beat, in the order of their names: not those that may have died before this process began to listen."""
        return sorted(name for name, (*_, moved) in self._heard.items() if moved and not self.silent(name))

    def look(self) -> None:
        now = time.monotonic()
        attrs = self.study._storage.get_study_system_attrs(self.study._study_id)
        self._awake += min(now - self._looked, 2 * BEAT)
        self._looked = now
        first = not self._heard
        for key, said in attrs.items():
            name = key.removeprefix(KEY)
            if name == key:
                continue
            before = self._heard.get(name)
            if before is None or before[0] != said:
                self._heard[name] = (said, self._awake, not first and name != self.me)

    def _beat(self) -> None:
        self._beats += 1
        said = {"beat": self._beats, **self.about}
        self.study._storage.set_study_system_attr(self.study._study_id, KEY + self.me, said)

    def _run(self) -> None:
        while not self._stop.wait(BEAT):
            with contextlib.suppress(Exception):  # a storage that is away: silence is not counted before it is back
                self._beat()
                self.look()
