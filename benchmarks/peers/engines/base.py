"""What an engine is: something that turns a float model into files, and serves these files."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.models import Arrays, Shape, Source


class UnsupportedError(Exception):
    """The engine cannot do this; the message is the reason that its row shows."""


def nothing() -> None:
    pass


@dataclass(frozen=True)
class Round:
    """What is timed.

    Attributes:
        call: the work, with inputs converted beforehand; returns the engine's own output.
        before: what must be undone first (a cache that has grown); not timed.
        steps: how many results `call` gives; its time is divided by that.
    """

    call: Callable[[], Any]
    before: Callable[[], None] = nothing
    steps: int = 1


class Served(ABC):
    """A model that is ready to run."""

    @abstractmethod
    def forward(self, inputs: Arrays) -> Round:
        """One forward pass."""

    def decode(self, inputs: Arrays) -> Round:
        """`STEPS` tokens (`tokens`), one by one, after a cache (`key_0`, `value_0`, …) filled with those before them.

        Every engine starts from the same cache, that of the float32 model.
        """
        raise UnsupportedError("no decoding with a cache")

    @abstractmethod
    def array(self, output: Any) -> np.ndarray:
        """The judged output as float32; of a decoding round, the logits of the last token."""


class Engine(ABC):
    """One row of the table.

    Attributes:
        packages: import name → what to give to pip.
        slow: left out unless asked for.
        artefact: engines with the same name serve the same files, which are then built once.
    """

    packages: ClassVar[dict[str, str]] = {}
    slow: bool = False

    @property
    @abstractmethod
    def artefact(self) -> str: ...

    @abstractmethod
    def build(self, source: Source, kind: str, folder: Path) -> None:
        """Write what is served into the empty `folder`; `kind` is a shape's kind.

        Raises:
            UnsupportedError: this engine has nothing for this kind.
        """

    @abstractmethod
    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        """Open `folder` for one shape, or for all that may come (None)."""

    def missing(self) -> str | None:
        """How to install what is not there, or None."""
        if all(importlib.util.find_spec(name) for name in self.packages):
            return None
        return f"not installed: pip install {' '.join(self.packages.values())}"

    def warm_imports(self, source: Source) -> None:
        """Import the code before memory is read: it is not the model's memory."""
        for name in self.packages:
            importlib.import_module(name)
