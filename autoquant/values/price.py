"""What each choice costs on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Price:
    """Bytes and milliseconds of every (base dtype, layer, scheme).

    One convention everywhere: **bytes** are what the checkpoint stores, scales and zero points included; a
    **latency** is the median wall clock in milliseconds of one forward pass of the whole model at `shape`, all inputs
    in memory. The layers' own milliseconds are measured alone, corrected by those of whole models, and predict the whole:
    T = base_ms[base] + Σ ms[base][layer][scheme]. Where a kernel also does what surrounds its layer, that is part of the sum:
    a layer's cheapest scheme may cost nothing, and so may the rest.

    Attributes:
        layer_bytes: base dtype → layer → scheme → bytes (tied layers: the owner pays, the others 0).
        other_bytes: base dtype → bytes of everything that is not a layer.
        layer_ms: base dtype → layer → scheme → median ms.
        layer_ms_noise: base dtype → layer → scheme → half the interquartile range of the layer alone, ms.
        base_ms: base dtype → ms of everything else.
        model_ms: base dtype → median ms of the whole float model as transformers runs it, measured end to end.
        served_ms: base dtype → that of the faster of the float model and a uniform int8 map, as the runtime serves them.
        runtime_choice: what `--runtime auto` measured before it took `runtime` (see `RuntimeChoice`); None if it was given.
        shape: {"batch_size": …, "seq_len": …} the latency holds for.
    """

    layer_bytes: Mapping[str, Mapping[str, Mapping[str, int]]]
    other_bytes: Mapping[str, int]
    layer_ms: Mapping[str, Mapping[str, Mapping[str, float]]]
    layer_ms_noise: Mapping[str, Mapping[str, Mapping[str, float]]]
    base_ms: Mapping[str, float]
    model_ms: Mapping[str, float]
    shape: Mapping[str, int]
    threads: int
    hardware: str
    runtime: str
    seconds: float
    fingerprint: str = ""
    runtime_choice: Mapping[str, Any] | None = None
    served_ms: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Price:
        return cls(**value)

    def bytes_of(self, base_dtype: str, layers: Mapping[str, str]) -> int:
        table = self.layer_bytes[base_dtype]
        return self.other_bytes[base_dtype] + sum(table[name][scheme] for name, scheme in layers.items())

    @property
    def unrest(self) -> float:
        """How much the same kernel's time varies from call to call, as a share: median over all layers and schemes.

        2 to 8% on machines without other work; NaN where it was not kept.
        """
        shares = [
            self.layer_ms_noise[base][layer][scheme] / ms
            for base, layers in self.layer_ms.items()
            for layer, row in layers.items()
            for scheme, ms in row.items()
            if ms > 0 and scheme in self.layer_ms_noise.get(base, {}).get(layer, {})
        ]
        return median(shares) if shares else float("nan")

    def ms_of(self, base_dtype: str, layers: Mapping[str, str]) -> float:
        table = self.layer_ms[base_dtype]
        return self.base_ms[base_dtype] + sum(table[name][scheme] for name, scheme in layers.items())
