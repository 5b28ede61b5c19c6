"""What a runtime is: kernels that a checkpoint is served with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoquant.errors import SchemeError
from autoquant.schemes import QuantizedTensor
from autoquant.values import Layer, Scheme


class Runtime(ABC):
    """Builds modules that really run a scheme on a device. What it cannot run it does not offer.

    Accuracy and speed are both measured on the modules that it builds.
    """

    name: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    builds_floats: ClassVar[bool] = False
    """A layer in the base dtype is a module of this runtime's, too, and not the model's own."""
    rest_seconds: ClassVar[float] = 0.0
    """For which a call beside it must be followed by nothing, so that it is timed alone: torch's threads wait busily."""

    def supports(self, layer: Layer, scheme: Scheme) -> str | None:
        """None if the runtime can run `scheme` on `layer`, otherwise the reason it cannot."""
        return cannot_have(layer, scheme)

    def fuses(self, device: str) -> bool:
        """Whether projections of one input (q/k/v, gate/up) that run one scheme are one product there.

        They are tied then: a price is of one layer, and does not know what it costs to run its siblings apart.
        """
        return False

    def require(self, layer: Layer, scheme: Scheme, input_scale: Tensor | None, outliers: Tensor | None) -> None:
        """Raises SchemeError: the runtime cannot run `scheme` on `layer`, or what the scheme has calibrated is missing."""
        if reason := self.supports(layer, scheme):
            raise SchemeError(f"The {self.name} runtime cannot run '{scheme.name}' on layer '{layer.name}': {reason}.")
        if scheme.is_static and input_scale is None:
            raise SchemeError("A static activation scheme needs a calibrated input scale.")
        if scheme.has_outliers and outliers is None:
            raise SchemeError("A scheme with outlier channels needs to know them (outliers).")

    def cannot_compute(self, dtype: str) -> str | None:
        """None if floats can be computed in `dtype` here, otherwise the reason not. Slowness is none: that is measured."""
        return None

    def has_kernels(self, dtype: str, device: str) -> bool:
        """Whether there are kernels of its own for what surrounds the layers of a model in this base dtype.

        A base dtype without any gains less by being served than one that has them, and need not be served to be ruled out.
        """
        return True

    @abstractmethod
    def build(
        self,
        layer: Layer,
        scheme: Scheme,
        module: nn.Module,
        weight: QuantizedTensor | Tensor,
        *,
        base_dtype: torch.dtype,
        input_scale: Tensor | None = None,
        outliers: Tensor | None = None,
    ) -> nn.Module:
        """A module that takes the place of `module`: same inputs, same outputs in `base_dtype`.

        Args:
            module: the float module (its weight may be on the meta device); bias and geometry are read from it.
            weight: (out, in) int8 codes for an int8 scheme, or the float matrix in the scheme's dtype.
            input_scale: (1,) for a static scheme: absmax / 127.5, in the dtype it is stored in.
            outliers: int32 (some,) channels of the input, for a scheme that has them.
        """

    def serve(self, model: nn.Module) -> nn.Module:
        """`model`, whose layers this runtime has built, as it is served: with what surrounds the layers made fast, too."""
        return model

    def refresh(self, model: nn.Module) -> None:  # noqa: B027 - most runtimes have nothing to do
        """Layers of a served model have been exchanged."""

    @abstractmethod
    def description(self) -> str:
        """Device and kernels in words, for reports: what a latency was measured on."""

    @classmethod
    def missing(cls) -> str | None:
        """None if it can be used in this installation, otherwise what to type so that it can."""
        return None


def cannot_have(layer: Layer, scheme: Scheme) -> str | None:
    """Why no runtime can run `scheme` on a layer of this kind, or None."""
    if scheme.weights is None:
        return None
    if scheme.is_packed and layer.tied_to is not None:
        return "a weight that layers share has 8 bits: readers tie weights, and not what is packed"
    if layer.kind == "embedding":
        if scheme.input is not None:
            return "an embedding has no input to quantize"
        return None if scheme.weights.strategy == "channel" else "embeddings are quantized per row (channel)"
    if layer.kind == "conv2d" and scheme.input is not None and not layer.patchify:
        return "int8 products only for convolutions whose kernel equals their stride"
    if scheme.has_outliers and layer.kind == "conv2d":
        return "outlier channels are of linear layers"
    if scheme.has_outliers and layer.shape[1] < LEAST_INPUTS:
        return f"outlier channels are of layers with {LEAST_INPUTS} inputs or more"
    return None


LEAST_INPUTS = 64
"""Of fewer, 16 outlier channels would be no few."""
