"""A map that the search looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """One trial of the search.

    Attributes:
        layers: layer → scheme; layers that are not named run in `base_dtype`.
        ms, bytes: end-to-end latency measured, and exact size of the checkpoint's tensors.
        noise: half the interquartile range of `ms`, as a share of it; NaN where it was not kept.
        saving: the objective: how many times better than float32 (1 is no better).
        drop, error: paired drop on the search split and its standard error.
        margin: what the certified bound is expected to be, less the budget; feasible when ≤ 0.
        divergence, predicted_divergence: of the model's output (nats, or half the squared distance); `divergence_error`: standard
            error of what was measured, where not all items were read.
        items: that it was judged by: fewer than the split has where the race was decided before.
        within_cap: it keeps to --max-mb and --max-ms, where they are given.
        state: complete, failed or skipped (it could not beat the best by its price); `reason` says why.
    """

    number: int
    label: str
    origin: str
    base_dtype: str
    layers: Mapping[str, str]
    state: str = "complete"
    reason: str = ""
    ms: float = float("nan")
    noise: float = float("nan")
    bytes: int = 0
    saving: float = float("nan")
    drop: float = float("nan")
    error: float = float("nan")
    margin: float = float("nan")
    divergence: float = float("nan")
    divergence_error: float = 0.0
    predicted_divergence: float = float("nan")
    items: int = 0
    seconds: float = 0.0
    within_cap: bool = True

    @property
    def quantized(self) -> bool:
        """Some layer runs something else than the base dtype."""
        return any(scheme != self.base_dtype for scheme in self.layers.values())

    @property
    def feasible(self) -> bool:
        return self.state == "complete" and self.margin <= 0 and self.within_cap

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "feasible": self.feasible}
