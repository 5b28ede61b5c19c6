"""Judge one map on the search split: paired drop, divergence, and latency end to end.

Items are read in one random order that all maps share, in growing chunks, until the race is decided (see
`autoquant.search.race`). The float model's outputs are computed once; quantized weights are cached by the assembler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from autoquant.certify.judge import drop_error, excess, paired_drop
from autoquant.evaluation import Evaluation, evaluate_further, evaluate_split, forward_call, time_models
from autoquant.profile.fisher import divergence
from autoquant.search import Outcome
from autoquant.search.problem import MOST_NOISE
from autoquant.search.race import chunks, decide
from autoquant.session import Session
from autoquant.tasks.base import Task, batches
from autoquant.values import Budget, Price

KEPT_OUTPUTS = 512 * 2**20
"""Bytes of float outputs kept to measure the divergence of each trial; batches beyond are judged by the metric alone."""
Plan = list[list[int]]
"""Rows of each batch."""


def expected_margin(drop: float, error: float, items: int, certification: int, budget: Budget) -> float:
    """What the certified bound is expected to exceed the budget by, from the drop on some items and its standard error."""
    normal = stats.norm.ppf(budget.confidence) if budget.confidence else 0.0
    return float(excess(drop + normal * error * math.sqrt(items / max(1, certification)), budget))


def partial_error(task: Task, before: np.ndarray, after: np.ndarray, budget: Budget, index: np.ndarray) -> float:
    """Standard error of the paired drop on some items of the search split (see `drop_error`, which takes all).

    One more item, changed as much as an item can be, is counted in: few items without any change prove little.
    """
    if task.mean_of_items and not (budget.relative or task.relative):
        n, found = len(index), (before - after)[index]
        most = (task.bounds[1] - task.bounds[0]) ** 2 if task.bounds is not None else 0.0
        return math.sqrt((float(np.var(found)) * n + most) / (n + 1) / n)
    folds = np.array_split(np.arange(len(index)), min(len(index), 50))  # the order is a random one
    drops = [paired_drop(task, "search", before, after, budget, np.delete(index, fold)) for fold in folds]
    return float(np.std(drops)) * math.sqrt(len(folds) - 1)


@dataclass
class Divergence:
    """The float model's outputs by batch, and the mean divergence of a model from them."""

    task: Task
    room: int = KEPT_OUTPUTS
    outputs: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    total: float = 0.0
    count: int = 0

    def keep(self, rows: list[int], output: torch.Tensor, batch: Any) -> None:
        size = output.numel() * output.element_size()
        if self.room >= size or not self.outputs:
            self.outputs[tuple(rows)], self.room = output, self.room - size

    def compare(self, rows: list[int], output: torch.Tensor, batch: Any) -> None:
        reference = self.outputs.get(tuple(rows))
        if reference is None or reference.shape != output.shape:
            return
        found = divergence(output, reference, self.task.output_kind)
        mask = self.task.mask(batch) if self.task.positions else None
        found = found if mask is None else found[mask]
        self.total += found.sum().item()
        self.count += found.numel()

    def forget(self) -> None:
        """What was compared, of a map that failed half way, too."""
        self.total, self.count = 0.0, 0

    def mean(self) -> float:
        """Of all that was compared since `forget`."""
        return self.total / max(1, self.count)


@dataclass
class Track:
    """The search split as a race course: the shared order of its items, cut into chunks, and the rows of each."""

    items: list[list[int]]
    plans: list[Plan]

    @classmethod
    def of(cls, task: Task, batch_size: int, seed: int, race: bool = True) -> Track:
        order = np.random.default_rng(seed).permutation(task.items("search")).tolist()
        parts = chunks(order) if race else [order]
        known: set[int] = set()
        plans = []
        for part in parts:
            rows = [row for row in task.rows_of("search", part) if row not in known]
            known.update(rows)
            plans.append(batches(task, "search", batch_size, rows))
        return cls(parts, plans)


@dataclass
class Judge:
    """Judges maps on the search split.

    Attributes:
        base: the float32 model on the whole split.
        milliseconds: measures a model's latency, in the price's milliseconds, and its noise as a share.
        priced: predicts the latency of a map instead, where this is not the hardware that is searched for.
    """

    task: Task
    budget: Budget
    track: Track
    base: Evaluation
    against: Divergence
    assemble: Callable[[dict[str, str], str], nn.Module]
    milliseconds: Callable[[nn.Module], tuple[float, float]]
    notify: Callable[[str], None]
    priced: Callable[[str, dict[str, str]], float] | None = None

    def __call__(self, base_dtype: str, layers: dict[str, str]) -> Outcome:
        """The outcome of a map."""
        model = self.assemble(layers, base_dtype)
        self.against.forget()
        drop, error, margin, items = self._race(model)
        ms, noise = (self.priced(base_dtype, layers), MOST_NOISE) if self.priced else self.milliseconds(model)
        return Outcome(
            drop=drop,
            error=error,
            margin=margin,
            divergence=self.against.mean(),
            ms=ms,
            noise=noise,
            items=items,
        )

    def measure(self, base_dtype: str, layers: dict[str, str]) -> tuple[float, int]:
        """(divergence of a map on the first chunk, items read)."""
        model = self.assemble(layers, base_dtype)
        self.against.forget()
        kept: list[torch.Tensor | None] = list(self.base.reduced)
        evaluate_further(
            model, self.task, "search", self.track.plans[0], kept, reference=self.base.reduced,
            observe=self.against.compare, notify=self.notify,
        )  # fmt: skip
        return self.against.mean(), len(self.track.items[0])

    def _race(self, model: nn.Module) -> tuple[float, float, float, int]:
        """(drop, its standard error, margin, items read)."""
        kept: list[torch.Tensor | None] = list(self.base.reduced)
        seen: list[int] = []
        for part, plan in zip(self.track.items, self.track.plans, strict=True):
            seen += part
            if plan:  # otherwise its rows came with an earlier chunk
                values = evaluate_further(
                    model, self.task, "search", plan, kept, reference=self.base.reduced,
                    observe=self.against.compare, notify=self.notify,
                )  # fmt: skip
            figures = self._figures(values, seen)
            _, error, margin = figures
            if decide(margin, error, len(seen), self.task.items("search")) is not None:
                break
        return *figures, len(seen)

    def _figures(self, values: np.ndarray, seen: Sequence[int]) -> tuple[float, float, float]:
        task, index = self.task, np.asarray(seen)
        whole = len(seen) == task.items("search")
        drop = paired_drop(task, "search", self.base.values, values, self.budget, None if whole else index)
        if whole:
            error = drop_error(task, "search", self.base.values, values, self.budget)
        else:
            error = partial_error(task, self.base.values, values, self.budget, index)
        return drop, error, expected_margin(drop, error, len(seen), task.items("certification"), self.budget)


def make_judge(session: Session, price: Price, update: Callable[[int, int], None]) -> Judge:
    """Run the float model on the search split."""
    s, task = session.settings, session.task
    track, against = Track.of(task, s.eval_batch_size, s.seed, s.race), Divergence(task)
    base = evaluate_split(
        session.model, task, "search", plan=[rows for plan in track.plans for rows in plan],
        batch_size=s.eval_batch_size, is_reference=True, observe=against.keep, progress=update,
        notify=session.progress.note,
    )  # fmt: skip
    if base.batch_size < s.eval_batch_size:  # the float model did not fit: nor would most maps
        track = Track.of(task, base.batch_size, s.seed, s.race)
    example = task.example(session.batch_size, session.seq_len)
    anchor = forward_call(session.model, task, example)

    def milliseconds(model: nn.Module) -> tuple[float, float]:
        times = time_models(
            {"map": forward_call(model, task, example), "anchor": anchor},
            rounds=7,
            warmup=1,
            max_seconds=3.0,
            rest_seconds=session.runtime.rest_seconds,
        )
        ms = times["map"][0] / times["anchor"][0] * price.model_ms["float32"]
        return ms, times["map"][1] / times["map"][0]

    return Judge(
        task, session.budget, track, base, against, session.assembler.assemble, milliseconds, session.progress.note
    )


def expected_minutes(session: Session, judge: Judge) -> float:
    """How long search and certification take if all trials are needed."""
    s, task = session.settings, session.task
    passes = 0.6 * s.trials + 2.5 * task.rows("certification") / task.rows("search")
    return judge.base.seconds * passes / 60 + 1
