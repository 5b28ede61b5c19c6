"""Search problems without a model: costs and divergences add up, as the surrogate supposes, or nearly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from autoquant.search import Outcome, Problem
from autoquant.search.problem import FLOAT, Choice
from autoquant.values import Group, Layer

SCHEMES = ("int8-channel-sym/a8-token", "int8-channel-sym", "int8-tensor-sym/a8-static")


def make(
    groups: int = 5, *, bases: tuple[str, ...] = ("float32", "bfloat16"), seed: int = 0, objective: str = "balanced",
    schemes: tuple[str, ...] = SCHEMES,
) -> Problem:  # fmt: skip
    """Layers of random size; the more a scheme saves, the more it harms."""
    rng = np.random.default_rng(seed)
    names = tuple(Group(f"layer{i}", (Layer(f"layer{i}", "linear", (8, 8)),)) for i in range(groups))
    options = ((FLOAT, *schemes),) * groups
    float_ms, sizes = rng.uniform(1, 4, groups), rng.uniform(1000, 9000, groups)
    speed = 1 / np.linspace(2.2, 4, len(schemes))
    ms, size = {}, {}
    for number, base in enumerate(bases):
        ms[base] = tuple(
            t * 0.8**number * np.array([1, *(speed * rng.uniform(0.9, 1.1, len(schemes)))]) for t in float_ms
        )
        half = 1 if base == "float32" else 0.5
        size[base] = tuple(b * np.array([half, *np.full(len(schemes), 0.25)]) for b in sizes)
    harm = np.geomspace(1, 8, len(schemes))
    scores = tuple(rng.lognormal(-5, 1.2) * np.array([0, *harm]) for _ in range(groups))
    return Problem(
        groups=names, options=options, ms=ms, bytes=size, scores=scores,
        base_ms=dict.fromkeys(bases, 1.0), base_bytes=dict.fromkeys(bases, 500.0),
        reference_ms=1.0 + float(float_ms.sum()), reference_bytes=500.0 + float(sizes.sum()), objective=objective,
    )  # fmt: skip


def scaled(problem: Problem, theta: np.ndarray) -> Problem:
    """Every group's scores times exp(θ)."""
    return replace(problem, scores=tuple(s * np.exp(t) for s, t in zip(problem.scores, theta, strict=True)))


@dataclass
class Judge:
    """`evaluate` of a synthetic problem: feasible where the true divergence is at most `limit`.

    `asked` keeps what it was asked; `before` is called with the number of each question.
    """

    problem: Problem
    limit: float
    theta: np.ndarray | None = None
    offsets: dict[str, float] = field(default_factory=dict)
    slowdown: dict[str, float] = field(default_factory=dict)
    before: Callable[[int], None] = lambda number: None
    asked: list[tuple[str, tuple[tuple[str, str], ...]]] = field(default_factory=list)

    def choice(self, base: str, layers: dict[str, str]) -> Choice:
        return tuple(
            options.index(FLOAT if layers[group.name] == base else layers[group.name])
            for group, options in zip(self.problem.groups, self.problem.options, strict=True)
        )

    def divergence(self, base: str, choice: Choice) -> float:
        return self.truth.score(choice) + self.offsets.get(base, 0.0)

    @property
    def truth(self) -> Problem:
        return self.problem if self.theta is None else scaled(self.problem, self.theta)

    def ms(self, base: str, choice: Choice) -> float:
        return self.problem.total_ms(base, choice) * (self.slowdown.get(base, 1.0) if any(choice) else 1.0)

    def __call__(self, base: str, layers: dict[str, str]) -> Outcome:
        self.asked.append((base, tuple(layers.items())))
        self.before(len(self.asked))
        choice = self.choice(base, layers)
        found = self.divergence(base, choice)
        return Outcome(found, 0.0, found - self.limit, found, self.ms(base, choice), 100)

    def best(self) -> float:
        """The largest saving of all feasible maps, by looking at every one."""
        savings = [
            self.problem.saving(self.ms(base, choice), self.problem.total_bytes(base, choice))
            for base in self.problem.base_dtypes
            for choice in product(*(range(len(options)) for options in self.problem.options))
            if self.divergence(base, choice) <= self.limit
        ]
        return max(savings)
