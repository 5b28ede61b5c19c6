"""What a checkpoint format is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from autoquant.checkpoint.outliers import outlier_problem
from autoquant.errors import CheckpointError
from autoquant.values import Layer, Scheme


@dataclass(frozen=True)
class StoredScheme:
    """What a config says of one layer: its scheme, and the outlier channels of its input, if that has such."""

    scheme: Scheme
    outliers: tuple[int, ...] = ()

    def check(self, layer: Layer, where: str) -> None:
        """Raises CheckpointError: the outlier channels cannot be those of this layer."""
        if self.scheme.has_outliers and (problem := outlier_problem(self.outliers, layer.shape[1])):
            raise CheckpointError(f"{where}: 'outliers' of {layer.name} must be {problem}. Write the checkpoint again.")


class Format(ABC):
    """How the schemes of a checkpoint are described in its config. The tensors are laid out alike in every format.

    Attributes:
        name: the key in `FORMATS` and the `quant_method` in config.json.
        weights_name: the weight file. Only a format that transformers reads by itself uses `model.safetensors`: a
            reader that does not know the format must find no weights, for it would take int8 codes for floats.
    """

    name: ClassVar[str]
    weights_name: ClassVar[str] = "model.safetensors"

    def cannot_hold_model(self, model: nn.Module) -> str | None:
        """None if models of this class can be written and read again in this format, otherwise the reason not."""
        return None

    @abstractmethod
    def cannot_hold(self, layer: Layer, scheme: Scheme, base_dtype: str) -> str | None:
        """None if a layer under this scheme can be described, otherwise the reason it cannot."""

    @abstractmethod
    def write(
        self, model: nn.Module, schemes: Mapping[str, Scheme], base_dtype: str, outliers: Mapping[str, Sequence[int]]
    ) -> dict[str, Any]:
        """The `quantization_config` for config.json.

        Args:
            model: read for its names only.
            schemes: every layer and its scheme; at least one is not the base dtype.
            outliers: outlier channels of the layers whose scheme has such.
        """

    @abstractmethod
    def read(self, config: Mapping[str, Any], model: nn.Module, where: str) -> dict[str, StoredScheme]:
        """Layer name in `model` → its scheme, of the layers that are not plain modules in the base dtype.

        Raises:
            CheckpointError: a scheme that autoquant cannot run, or a newer version of the format.
        """
