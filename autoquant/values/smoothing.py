"""Channels scaled by powers of two between a module and the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoquant.errors import LayerMapError, reject_unknown

LEAST, MOST = -8, 7
"""Of an exponent: one hexadecimal digit, of which 8 stands for 0."""


@dataclass(frozen=True)
class Smoothing:
    """The input of some layers divided by 2**exponent, channel by channel, and their weights multiplied by it.

    Attributes:
        source: module that gives the input, up to what commutes with the scaling: a norm, or a linear layer whose outputs are
            multiplied or averaged before they are read. Its weights and bias are divided by 2**exponent.
        layers: linear layers that read it; columns of their weights are multiplied by 2**exponent.
        exponents: one an output channel of `source`.
        head: channels of an attention head, where the layers read each head of `source` several times in a row
            (grouped-query attention); 0 where they read each channel once.
    """

    source: str
    layers: tuple[str, ...]
    exponents: tuple[int, ...]
    head: int = 0

    def to_dict(self) -> dict[str, Any]:
        digits = "".join(f"{exponent - LEAST:x}" for exponent in self.exponents)
        return {"source": self.source, "layers": list(self.layers), "head": self.head, "exponents": digits}

    @classmethod
    def from_dict(cls, value: Any, where: str) -> Smoothing:
        """What `to_dict` wrote.

        Raises:
            LayerMapError: it is something else.
        """
        if not isinstance(value, Mapping):
            raise LayerMapError(f"{where}: each entry of 'smoothing' must be a mapping.")
        reject_unknown(value, ("source", "layers", "head", "exponents"), f"{where}: smoothing", LayerMapError)
        head = value.get("head") or 0
        if not isinstance(head, int) or head < 0:
            raise LayerMapError(f"{where}: 'head' of a smoothing must be a number of channels, or 0, not {head!r}.")
        digits, layers = str(value.get("exponents") or ""), value.get("layers")
        if not digits or set(digits) - set("0123456789abcdef"):
            raise LayerMapError(f"{where}: 'exponents' of a smoothing must be hexadecimal digits, one a channel.")
        if not isinstance(layers, list) or not layers or not value.get("source"):
            raise LayerMapError(f"{where}: a smoothing needs a 'source' and the 'layers' that read it.")
        exponents = tuple(int(digit, 16) + LEAST for digit in digits)
        return cls(str(value["source"]), tuple(map(str, layers)), exponents, head)
