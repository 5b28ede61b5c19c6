"""What the user allows, and what was found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from autoquant.errors import UsageError

EXIT_CODES = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}
"""Status of a verdict → exit code of the command that gave it."""


@dataclass(frozen=True)
class Budget:
    """The largest allowed drop of the task's metric against the float32 model.

    Attributes:
        drop: allowed drop in [0, 1]: in the metric's own unit, or a share of the float model's value if `relative`.
        relative: perplexity is always judged relatively (0.01 allows 1% more).
        confidence: of the one-sided bound that must stay below `drop`; None judges by the point estimate.
    """

    drop: float
    relative: bool = False
    confidence: float | None = 0.95

    def __post_init__(self) -> None:
        if not (isinstance(self.drop, int | float) and math.isfinite(self.drop) and 0 <= self.drop <= 1):
            raise UsageError(f"--budget must be between 0 and 1, not {self.drop}. 0.01 allows a drop of one point.")
        if self.confidence is not None and not 0.5 < self.confidence < 1:
            raise UsageError(f"--confidence must be between 0.5 and 1 or 'none', not {self.confidence}.")


@dataclass(frozen=True)
class Verdict:
    """The answer of certification.

    Attributes:
        status: PASS, FAIL or INCONCLUSIVE.
        drop: paired drop measured on the certification split; positive is worse.
        upper_bound, lower_bound: one-sided bounds at `confidence` on the drop.
        n: items judged.
        method: name of the bound; ends in "(asymptotic)" when it holds only for large n.
        needed: items that would settle it, when INCONCLUSIVE.
        clusters: independent groups of items that the bound rests on; None when every item is one.
        use: how many times these certification data have been used, this time included (see `certify.ledger`).
    """

    status: str
    metric: str
    float_value: float
    quantized_value: float
    drop: float
    upper_bound: float
    lower_bound: float
    confidence: float | None
    n: int
    method: str
    needed: int | None = None
    clusters: int | None = None
    use: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
