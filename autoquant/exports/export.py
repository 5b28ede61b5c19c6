"""What an export is: a checkpoint written for another engine, in a folder that the engine opens by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from autoquant.runtimes import Runtime


class Export(ABC):
    """One format.

    Attributes:
        name: the word behind --format.
        file: its file in the folder; a folder that holds it is an export in this format.
        weights: pattern of the files that hold the weights.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    weights: ClassVar[str]

    @abstractmethod
    def missing(self) -> str | None:
        """None if everything it needs is installed, otherwise what to type."""

    @abstractmethod
    def runtime(self) -> Runtime:
        """What a checkpoint must be loaded with to be exported; it refuses the schemes that the engine cannot run.

        Raises:
            UsageError: something it needs is not installed.
        """

    @abstractmethod
    def write(self, model: nn.Module, example: Mapping[str, Any], folder: Path) -> None:
        """Write the files of the engine; `model` consists of layers that `runtime()` built.

        Args:
            example: a batch; rows and, for ids and masks, positions become dynamic.

        Raises:
            ModelError: the model cannot be recorded, or mixes float dtypes that the engine computes alike.
        """

    def note(self, base_dtype: str) -> str | None:
        """What a user of the engine by itself must know of a model of this base dtype."""
        return None

    @abstractmethod
    def open(self, folder: Path, config: Any) -> nn.Module:
        """A module that runs the files on this machine: the same keyword arguments and outputs as the torch model.

        Raises:
            CheckpointError: a file is missing, corrupt, or was not written by autoquant.
        """
