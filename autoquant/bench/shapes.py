"""What is measured: shapes, and which of them fit a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from autoquant.errors import UsageError

DEFAULT_LENGTH = 128
"""Tokens of a text where nobody says otherwise and the model takes as many."""


@dataclass(frozen=True, order=True)
class Shape:
    """One thing to time. `seq_len` is None for images."""

    threads: int
    seq_len: int | None
    batch_size: int

    def __str__(self) -> str:
        return f"{self.batch_size}" + (f" × {self.seq_len}" if self.seq_len else "")


def check_counts(values: Sequence[int], option: str) -> tuple[int, ...]:
    """Distinct whole numbers from 1 up, in order.

    Raises:
        UsageError: there are none, or one is smaller.
    """
    if not values or min(values) < 1:
        found = ", ".join(map(str, values)) or "nothing"
        raise UsageError(f"{option} takes whole numbers from 1 up, separated by commas, not {found}.")
    return tuple(sorted(set(values)))


def check_threads(values: Sequence[int]) -> tuple[int, ...]:
    """As `check_counts`, and no more than this process may use at once.

    Raises:
        UsageError: more threads than CPUs would take turns, and only that would be measured.
    """
    found = check_counts(values, "--threads")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if found[-1] > cpus:
        raise UsageError(f"--threads {found[-1]}: this process may use {cpus} CPUs. Valid: 1 to {cpus}.")
    return found


def lengths_for(asked: Sequence[int] | None, kind: str, longest: int | None) -> tuple[int | None, ...]:
    """The sequence lengths to measure.

    Args:
        kind: kind of the model's inputs; images have no length.
        longest: tokens that the model takes at most, if it says so.

    Raises:
        UsageError: a length was asked of images, or one that the model does not take.
    """
    if kind == "images":
        if asked is not None:
            raise UsageError("--seq-lens: this model reads images, which have no sequence length. Leave it out.")
        return (None,)
    if asked is None:
        return (min(DEFAULT_LENGTH, longest or DEFAULT_LENGTH),)
    found = check_counts(asked, "--seq-lens")
    if longest is not None and found[-1] > longest:
        raise UsageError(f"--seq-lens {found[-1]}: this model takes 1 to {longest} tokens.")
    return found
