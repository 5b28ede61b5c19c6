"""Which runtime `--runtime auto` has taken, and what it measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RuntimeChoice:
    """Attributes:
    chosen: name of the runtime whose fastest map is fastest.
    reason: in a sentence, for people.
    ms: runtime → uniform map → median ms of one forward pass of the whole model at `shape`; empty if one alone was usable.
    left_out: runtime → why it was not measured.
    """

    chosen: str
    reason: str
    ms: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, str]
    shape: Mapping[str, int | None]
    threads: int
    seconds: float
    fingerprint: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> RuntimeChoice:
        return cls(**value)
