"""Outlier channels in files: numbers in a line, `3 17 40`; a list of them would be a line a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def to_text(channels: Sequence[int]) -> str:
    return " ".join(map(str, channels))


def from_text(value: Any) -> tuple[int, ...] | None:
    """What `to_text` wrote; None for anything else."""
    if not isinstance(value, str) or not all(number.isascii() and number.isdigit() for number in value.split()):
        return None
    return tuple(int(number) for number in value.split())
