"""How a layer is stored and computed."""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.errors import SchemeError


@dataclass(frozen=True)
class QuantizationArgs:
    """How one tensor is quantized. Fields and words are those of compressed-tensors' `QuantizationArgs`.

    With a weight of shape (out, in), scale and zero point have shape
    (1,) for strategy `tensor` and (out, 1) for `channel`. An activation of shape (..., in) has one scale for the
    whole tensor (`tensor`) or one for each row (..., 1) (`token`); `dynamic` ones are computed at every call, static
    ones are calibrated beforehand and stored.

    Attributes:
        num_bits: 8; of weights also 6 or 4, which are packed in a checkpoint and computed with as codes of 8 bits.
        outliers: a few calibrated channels, whose values are far larger than the others', have codes of 16 bits (no field of
            compressed-tensors).
    """

    strategy: str
    num_bits: int = 8
    type: str = "int"
    symmetric: bool = True
    dynamic: bool = False
    outliers: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in ("tensor", "channel", "token"):
            raise SchemeError(f"Unknown strategy '{self.strategy}'. Valid: tensor, channel, token.")
        if self.type != "int" or self.num_bits not in (4, 6, 8):
            raise SchemeError(f"Only int with 8, 6 or 4 bits is supported, not {self.type} with {self.num_bits}.")
        if self.num_bits < 8 and (self.strategy != "channel" or self.dynamic):
            raise SchemeError(f"{self.num_bits} bits are for weights with one scale a channel; all else has 8.")
        if self.outliers and (self.strategy != "token" or not self.dynamic):
            raise SchemeError("Only dynamic inputs with one scale a token can have outlier channels.")


@dataclass(frozen=True)
class Scheme:
    """A name for people, and either a float `dtype` or quantized `weights` with optional quantized `input`.

    `float32`, `bfloat16`, `float16` store and compute the layer in that dtype. An int8 scheme stores the weight in
    int8; with `input` the product runs in integers, without it (weight only) the weight is expanded as it is used. Weights
    of 6 and 4 bits are smaller files: they become int8 codes as they are loaded, and are int8 in memory and in every kernel.
    """

    name: str
    dtype: str | None = None
    weights: QuantizationArgs | None = None
    input: QuantizationArgs | None = None

    def __post_init__(self) -> None:
        if (self.dtype is None) == (self.weights is None):
            raise SchemeError(f"Scheme '{self.name}' needs either a float dtype or quantized weights.")
        if self.input is not None and self.weights is None:
            raise SchemeError(f"Scheme '{self.name}' quantizes its input but not its weights.")

    @property
    def is_float(self) -> bool:
        return self.dtype is not None

    @property
    def is_packed(self) -> bool:
        """Weights of fewer than 8 bits lie packed in a checkpoint."""
        return self.weights is not None and self.weights.num_bits < 8

    @property
    def has_outliers(self) -> bool:
        """Needs to know the outlier channels of its input."""
        return self.input is not None and self.input.outliers

    @property
    def is_static(self) -> bool:
        """Needs a calibrated input range."""
        return self.input is not None and not self.input.dynamic
