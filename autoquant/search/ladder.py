"""Which maps are measured once more side by side, which of these are certified, and which of two is better.

A map is better when it saves more. Maps whose savings differ by less than the timing can tell are equal, and of these the one
with the smaller divergence is better: what cannot be measured is not worth a worse model. No map is better than a
faster one of the simplest kind (no quantization, or the same everywhere), whatever its size, unless memory alone was asked
for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from autoquant.search.problem import TIME_WEIGHT, noise_share
from autoquant.values import Candidate

SAFER = 0.7
"""A rung before another has at most this share of its divergence."""
FASTEST, ENQUEUED = 3, 2
"""Maps measured once more beside the ladder: the most saving ones, and of those that every search begins with."""


def noise_of(*candidates: Candidate) -> float:
    """Share by which the latencies of these may differ through noise alone."""
    return noise_share(*((c.ms, c.noise * c.ms) for c in candidates))


def slower(a: Candidate, b: Candidate) -> bool:
    """Whether `a` takes more time than `b`, beyond the noise."""
    return a.ms > b.ms * (1 + noise_of(a, b))


def saves_as_much(a: Candidate, b: Candidate, objective: str) -> bool:
    """Whether the saving of `a` is that of `b`, or more, as far as the timing can tell."""
    return a.saving >= b.saving * (1 - noise_of(a, b)) ** TIME_WEIGHT[objective]


def preferred(among: Iterable[Candidate], objective: str) -> Candidate:
    """The best of these: the most saving, or one that the noise cannot tell from it, with the smallest divergence."""
    left = list(among)
    simple = min((c for c in left if not c.quantized or c.origin == "enqueued"), key=lambda c: c.ms, default=None)
    if simple is not None and objective != "memory":
        left = [c for c in left if not slower(c, simple)]
    best = max(left, key=lambda c: c.saving)
    return min((c for c in left if saves_as_much(c, best, objective)), key=lambda c: c.divergence)


def ladder(found: Sequence[Candidate], rungs: int = 2, objective: str = "balanced") -> list[Candidate]:
    """The quantized maps to certify, at most `rungs`, safe → aggressive; fixed before the certification data is touched.

    The best comes last, and before it maps that give up some saving for a smaller divergence. Only maps that are better than
    every map without quantization (that fits) are worth it. When none of these fits on the search split, the one that came
    closest is tested all the same: the answer then rests on data that nobody tuned on.
    """
    complete = [c for c in found if c.state == "complete"]
    floats = [c for c in complete if not c.quantized and (c.feasible or c.base_dtype == "float32")]
    worth = [c for c in complete if c.quantized and all(_pays(c, plain, objective) for plain in floats)]
    left = [c for c in worth if c.feasible]
    if not left:
        return sorted(worth, key=lambda c: c.margin)[:1]
    front: list[Candidate] = []
    while left:
        front.append(preferred(left, objective))
        left = [c for c in left if c.divergence < SAFER * front[-1].divergence]
    return front[:rungs][::-1]


def _pays(quantized: Candidate, plain: Candidate, objective: str) -> bool:
    if objective != "memory" and slower(quantized, plain):
        return False
    return not saves_as_much(plain, quantized, objective)


def finalists(
    found: Sequence[Candidate], rungs: int = 2, objective: str = "balanced", room: float = math.inf
) -> list[Candidate]:
    """The maps that may be shipped, to be timed again side by side: floats, the ladder as the search sees it, the best uniform
    maps, and what saves most; of the last two as many as fit.

    Args:
        room: bytes that all these models may take together.
    """
    fits = sorted((c for c in found if c.feasible and c.quantized), key=lambda c: -c.saving)
    uniform = [c for c in fits if c.origin == "enqueued"]
    floats = [c for c in found if c.state == "complete" and not c.quantized]
    chosen = {c.number: c for c in (*floats, *ladder(found, rungs, objective))}
    for c in (*uniform[:ENQUEUED], *fits[:FASTEST]):
        if sum(one.bytes for one in chosen.values()) + c.bytes <= room:
            chosen[c.number] = c
    return sorted(chosen.values(), key=lambda c: c.number)
