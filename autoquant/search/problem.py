"""The search as plain data: groups, options, costs and scores. No model in sight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoquant.schemes import SCHEMES, project
from autoquant.values import Group, Layer, Price, Profile

LEAST_NOISE, MOST_NOISE = 0.02, 0.05
"""Share of a latency that cannot be told apart: never less; and never more, because medians of many rounds in turns agree to
that on a machine whose single calls do not."""

FLOAT = "float"
"""The option that keeps a group in the base dtype, whatever that is."""

Choice = tuple[int, ...]
"""One option index a group."""


@dataclass(frozen=True)
class Problem:
    """Choose one option a group, and a base dtype.

    Attributes:
        groups: what is decided together.
        options: group → option names; index 0 is always `FLOAT`.
        ms, bytes: base dtype → group → (options,) float arrays; bytes of a group add up over its layers.
        scores: group → (options,) predicted divergence; the float option scores 0.
        base_ms, base_bytes: base dtype → everything that is not in a group.
        reference_ms, reference_bytes: of the float32 model.
        objective: balanced, latency or memory.
        exact: (group, option name) of the scores that were measured, and not predicted.
        max_ms, max_bytes: hard caps; with one, the smallest drop under the caps is looked for instead of the largest saving
            within the budget.
    """

    groups: tuple[Group, ...]
    options: tuple[tuple[str, ...], ...]
    ms: Mapping[str, tuple[np.ndarray, ...]]
    bytes: Mapping[str, tuple[np.ndarray, ...]]
    scores: tuple[np.ndarray, ...]
    base_ms: Mapping[str, float]
    base_bytes: Mapping[str, float]
    reference_ms: float
    reference_bytes: float
    objective: str = "balanced"
    exact: frozenset[tuple[int, str]] = frozenset()
    max_ms: float = math.inf
    max_bytes: float = math.inf

    @property
    def capped(self) -> bool:
        return math.isfinite(self.max_ms) or math.isfinite(self.max_bytes)

    def over(self, ms: float, size: float) -> float:
        """The largest share by which a cap is exceeded; 0 or less is within all caps."""
        return max(ms / self.max_ms, size / self.max_bytes) - 1

    @property
    def base_dtypes(self) -> tuple[str, ...]:
        return tuple(self.ms)

    def least(self, rest: Mapping[str, float], tables: Mapping[str, tuple[np.ndarray, ...]]) -> float:
        """The smallest sum over all maps, of `ms` or of `bytes`."""
        return min(rest[base] + sum(float(t.min()) for t in tables[base]) for base in tables)

    def total_ms(self, base: str, choice: Choice) -> float:
        return self.base_ms[base] + sum(float(t[i]) for t, i in zip(self.ms[base], choice, strict=True))

    def total_bytes(self, base: str, choice: Choice) -> float:
        return self.base_bytes[base] + sum(float(b[i]) for b, i in zip(self.bytes[base], choice, strict=True))

    def saving(self, ms: float, size: float) -> float:
        """How many times better than float32: speed-up, size ratio, or their geometric mean."""
        return saving(self.objective, self.reference_ms / ms, self.reference_bytes / size)

    def value(self, saving: float, drop: float) -> float:
        """What the search maximises."""
        return -drop if self.capped else saving

    def score(self, choice: Choice) -> float:
        return float(sum(s[i] for s, i in zip(self.scores, choice, strict=True)))

    def layers(self, base: str, choice: Choice) -> dict[str, str]:
        """Layer → scheme name under this choice."""
        return {
            name: scheme
            for place, index in enumerate(choice)
            for name, scheme in self._member(base, place, index).items()
        }

    def choice_of(self, base: str, layers: Mapping[str, str]) -> Choice:
        """The choice under which the layers run these schemes: what `layers` was made from, or an equal one."""
        own = [{layer.name: layers[layer.name] for layer in group.layers} for group in self.groups]
        return tuple(
            next(i for i in range(len(options)) if self._member(base, place, i) == own[place])
            for place, options in enumerate(self.options)
        )

    def _member(self, base: str, place: int, index: int) -> dict[str, str]:
        """Layer → scheme of one group under one of its options."""
        name = self.options[place][index]
        scheme = SCHEMES[base if name == FLOAT else name]
        return {layer.name: project(scheme, layer.kind).name for layer in self.groups[place].layers}

    def uniform(self, scheme: str) -> Choice:
        """Every group that can runs `scheme`; an embedding runs its weight part; the others stay float."""
        weight = scheme.split("/")[0]
        return tuple(
            options.index(scheme) if scheme in options else options.index(weight) if weight in options else 0
            for options in self.options
        )


def saving(objective: str, speedup: float, shrink: float) -> float:
    return {"balanced": math.sqrt(speedup * shrink), "latency": speedup, "memory": shrink}[objective]


OBJECTIVES = ("balanced", "latency", "memory")
TIME_WEIGHT = {"balanced": 0.5, "latency": 1.0, "memory": 0.0}
"""The exponent of the speed-up in the saving of each objective."""


def level(ms: Mapping[str, float], noise: Mapping[str, float]) -> dict[str, float]:
    """A layer's milliseconds under each scheme, those that the noise cannot tell from a faster scheme's made equal to it.

    Between equals the divergence decides, and not the timing of a moment. Times of unknown noise stay as they are.
    """
    if not noise:
        return dict(ms)
    found: dict[str, float] = {}
    leader = ""
    for name in sorted(ms, key=lambda name: ms[name]):
        if not leader or ms[name] > ms[leader] * (
            1 + noise_share((ms[leader], noise[leader]), (ms[name], noise[name]))
        ):
            leader = name
        found[name] = ms[leader]
    return {name: found[name] for name in ms}


def noise_share(*timed: tuple[float, float]) -> float:
    """Share by which latencies, given as (ms, noise in ms), may differ through noise alone."""
    shares = [noise / ms for ms, noise in timed if ms > 0 and math.isfinite(noise)]
    return min(max(math.hypot(*shares), LEAST_NOISE), MOST_NOISE)


def make_problem(
    groups: Sequence[Group], allowed: Mapping[str, Sequence[str]], profile: Profile, price: Price, objective: str,
    *, max_ms: float = math.inf, max_bytes: float = math.inf,
) -> Problem:  # fmt: skip
    """Put profile and price together."""
    options = options_of(groups, allowed)

    def member(name: str, layer: Layer, base: str) -> str:
        return project(SCHEMES[base if name == FLOAT else name], layer.kind).name

    def table(values: Mapping[str, Mapping[str, float]], base: str) -> tuple[np.ndarray, ...]:
        return tuple(
            np.array([sum(values[x.name][member(name, x, base)] for x in group.layers) for name in names], float)
            for group, names in zip(groups, options, strict=True)
        )

    timed = {
        base: {name: level(row, price.layer_ms_noise.get(base, {}).get(name, {})) for name, row in layers.items()}
        for base, layers in price.layer_ms.items()
    }

    def divergences(group: Group, name: str) -> float:
        if name == FLOAT:
            return 0.0
        return sum(profile.scores[layer.name][member(name, layer, name)] for layer in group.layers)

    scores = tuple(
        np.array([divergences(group, name) for name in names]) for group, names in zip(groups, options, strict=True)
    )
    searched = tuple(price.layer_ms)
    floats = {layer.name: "float32" for group in groups for layer in group.layers}
    return Problem(
        groups=tuple(groups),
        options=options,
        ms={base: table(timed[base], base) for base in searched},
        bytes={base: table(price.layer_bytes[base], base) for base in searched},
        scores=scores,
        base_ms=dict(price.base_ms),
        base_bytes=dict(price.other_bytes),
        reference_ms=price.model_ms["float32"],
        reference_bytes=price.bytes_of("float32", floats),
        objective=objective,
        max_ms=max_ms,
        max_bytes=max_bytes,
    )


def options_of(groups: Sequence[Group], allowed: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """What each group may choose: `FLOAT`, and what each of its layers may run (projected on its kind)."""
    options = []
    for group in groups:
        first = allowed[max(group.layers, key=lambda layer: len(allowed[layer.name])).name]
        fits = [
            name for name in first
            if all(project(SCHEMES[name], layer.kind).name in allowed[layer.name] for layer in group.layers)
        ]  # fmt: skip
        options.append((FLOAT, *fits))
    return tuple(options)
