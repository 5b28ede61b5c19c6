"""How sensitive each layer is to each scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerStats:
    """What people read about a layer.

    Attributes:
        weight_min, weight_max, weight_kurtosis: of the weight; kurtosis is excess (0 for a Gaussian).
        channel_range_ratio: largest row range over the median row range (1 when all rows are alike).
        input_absmax: largest absolute input on the calibration data; None for an embedding.
        outlier_ratio: `input_absmax` over the 99.9th percentile of |input|.
        outliers: the input channels with the largest values, which a scheme with outlier channels gives 16 bits.
    """

    weight_min: float
    weight_max: float
    weight_kurtosis: float
    channel_range_ratio: float
    input_absmax: float | None = None
    outlier_ratio: float | None = None
    outliers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Profile:
    """Score and output SQNR of every (layer, scheme), and statistics of every layer.

    Attributes:
        scores: layer → scheme → divergence that quantizing this one layer adds, in nats (½ mean squared distance for an
            embedding) per model output.
        sqnr_db: layer → scheme → 10 log10(signal / quantization noise) of the layer's output.
        method: `fisher` (sampled-label Fisher inner product) or `output-error` (no gradient was available).
        forwards: cost in forward passes of the calibration set, all schemes together.
        seconds: wall clock.
        rows: calibration inputs read.
    """

    scores: Mapping[str, Mapping[str, float]]
    sqnr_db: Mapping[str, Mapping[str, float]]
    stats: Mapping[str, LayerStats]
    method: str
    rows: int
    forwards: float
    seconds: float
    fingerprint: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Profile:
        stats = {name: _stats(item) for name, item in value["stats"].items()}
        return cls(**{**value, "stats": stats})


def _stats(value: Mapping[str, Any]) -> LayerStats:
    outliers = value.get("outliers")
    return LayerStats(**{**value, "outliers": None if outliers is None else tuple(outliers)})
