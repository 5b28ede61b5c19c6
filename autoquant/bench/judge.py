"""From rounds of calls to figures, and what can be said of them on this machine as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autoquant.bench.shapes import Shape
from autoquant.evaluation import spread

NOISY = 0.05
"""Rounds of one shape that differ by more than this share of their median, or waiting for more than this share of the time:
the machine does something else, and differences between shapes say little."""
SATURATED = 0.95
"""A batch size with this share of the highest throughput: larger ones cost latency and memory and bring next to nothing."""
ENOUGH = 100
"""Calls that a 99th percentile takes at least; of fewer it would be the slowest call."""


@dataclass(frozen=True)
class Point:
    """What was measured at one shape.

    Attributes:
        p50_ms, p90_ms, p99_ms: percentiles over all calls; p99 is None of fewer than `ENOUGH` calls.
        spread_ms: half the interquartile range of the rounds' medians.
        noise: the most by which rounds of this very shape disagree, as a share of their median (see `disagreement`).
        waited: share of the time in which the process was ready and had no CPU; None where the kernel does not say.
        items_per_s, tokens_per_s: at the median latency; tokens are None for images.
        peak_memory_bytes: of a process that has loaded the model and run all shapes up to this one.
    """

    threads: int
    batch_size: int
    seq_len: int | None
    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    spread_ms: float
    noise: float
    waited: float | None
    items_per_s: float
    tokens_per_s: float | None
    peak_memory_bytes: int
    calls: int
    rounds: int

    @property
    def noisy(self) -> bool:
        return self.noise > NOISY or (self.waited or 0.0) > NOISY


@dataclass(frozen=True)
class Best:
    """The best batch size for one number of threads and one length.

    Attributes:
        batch_size: the one with the highest throughput; None when the machine was too noisy to tell.
        like: batch sizes whose throughput the noise cannot tell from that.
        saturates_at: the smallest with `SATURATED` of the highest throughput; None when it cannot be told.
        open_ended: whether the largest that was measured is the smallest to get there: a larger one may be better still.
        reason: why it cannot be told, or "".
    """

    threads: int
    seq_len: int | None
    batch_size: int | None
    items_per_s: float | None
    like: tuple[int, ...]
    saturates_at: int | None
    open_ended: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"like": list(self.like)}


def disagreement(medians: Sequence[float]) -> float:
    """How far medians of one and the same thing are apart, as a share: 0 when all agree, 0 for fewer than four.

    The largest of: half their interquartile range; first half against second half (something that came or went); even
    against odd rounds (something that comes and goes).
    """
    if len(medians) < 4:
        return 0.0
    values = np.asarray(medians)
    middle, half = float(np.median(values)), len(values) // 2
    halves = ((values[:half], values[half:]), (values[::2], values[1::2]))
    apart = [abs(float(np.median(a)) - float(np.median(b))) for a, b in halves]
    return max(spread(list(medians))[1], *apart) / middle


def point(shape: Shape, rounds: Sequence[Sequence[float]], waited: Sequence[float | None], peak: int) -> Point:
    """The figures of one shape from the ms of every call, round by round, at least one round of at least one call."""
    calls = [ms for one in rounds for ms in one]
    medians = [float(np.median(one)) for one in rounds]
    p50, p90, p99 = (float(value) for value in np.percentile(calls, [50, 90, 99]))
    known = [share for share in waited if share is not None]
    items = shape.batch_size / p50 * 1e3
    return Point(
        threads=shape.threads,
        batch_size=shape.batch_size,
        seq_len=shape.seq_len,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99 if len(calls) >= ENOUGH else None,
        spread_ms=spread(medians)[1],
        noise=disagreement(medians),
        waited=float(np.mean(known)) if known else None,
        items_per_s=items,
        tokens_per_s=None if shape.seq_len is None else items * shape.seq_len,
        peak_memory_bytes=peak,
        calls=len(calls),
        rounds=len(rounds),
    )


def best(points: Sequence[Point]) -> Best:
    """The best batch size among points of one number of threads and one length."""
    top = max(points, key=lambda one: one.items_per_s)
    like = [one for one in points if one is not top and 1 - one.items_per_s / top.items_per_s <= _apart(one, top)]
    noise = float(np.median([one.noise for one in points]))
    waited = float(np.median([one.waited or 0.0 for one in points]))
    reason = ""
    if noise > NOISY or top.noise > NOISY:
        reason = f"rounds of the same shape differ by {max(noise, top.noise):.0%}"
    elif waited > NOISY or (top.waited or 0.0) > NOISY:
        reason = f"the process waited for a CPU for {max(waited, top.waited or 0.0):.0%} of the time"
    enough = min(one.batch_size for one in points if one.items_per_s >= SATURATED * top.items_per_s)
    return Best(
        threads=top.threads,
        seq_len=top.seq_len,
        batch_size=None if reason else top.batch_size,
        items_per_s=None if reason else top.items_per_s,
        like=tuple(sorted(one.batch_size for one in like)),
        saturates_at=None if reason else enough,
        open_ended=len(points) > 1 and enough == max(one.batch_size for one in points),
        reason=reason,
    )


def _apart(a: Point, b: Point) -> float:
    """The share by which two throughputs may differ through noise alone: both noises, added in quadrature."""
    return float(np.hypot(a.noise, b.noise))
