"""Judge one map on the search split: paired drop, divergence, and latency end to end.

Items are read in one order that all maps share, in growing chunks, until the race is decided (see `autoquant.racing`). The float
model's outputs are computed once; quantized weights are cached by the assembler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from autoquant.divergence import Divergence
from autoquant.errors import NumericsError
from autoquant.evaluation import SETTLED, Evaluation, evaluate_further, evaluate_split, forward_call, time_models
from autoquant.memory import recycled
from autoquant.profile.run import POSITIONS
from autoquant.racing import Course, Figures, order_of
from autoquant.replay import Replay
from autoquant.search import Outcome
from autoquant.search.problem import MOST_NOISE
from autoquant.search.race import Order
from autoquant.session import Session
from autoquant.tasks.base import Task, batches
from autoquant.values import Price

ANCHOR_MS = 10
"""Of the float32 model's calls beside each map: as short as maps are, but no blink."""

ROUNDS, ROUNDS_BESIDE = 15, 5
"""Rounds in which a map is timed, at most; and in a process that others judge maps beside, where more calls make the latency no
truer: what may be shipped is timed again, alone."""

Plan = list[list[int]]
"""Rows of each batch."""


@dataclass
class Track:
    """The rows that each chunk of an order of items needs, in batches."""

    items: list[list[int]]
    plans: list[Plan]

    @classmethod
    def of(cls, task: Task, batch_size: int, parts: list[list[int]]) -> Track:
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
        replay: runs one-layer maps on the first `few` items.
        priced: predicts the latency of a map instead, where this is not the hardware that is searched for.
    """

    course: Course
    track: Track
    base: Evaluation
    against: Divergence
    assemble: Callable[[dict[str, str], str], nn.Module]
    milliseconds: Callable[[nn.Module], tuple[float, float]]
    notify: Callable[[str], None]
    replay: Replay
    few: int
    priced: Callable[[str, Mapping[str, str]], float] | None = None

    def __call__(self, base_dtype: str, layers: dict[str, str]) -> Outcome:
        """The outcome of a map."""
        model = self.assemble(layers, base_dtype)
        self.against.forget()
        if {base_dtype, *layers.values()} == {"float32"}:  # the model itself, which all are compared with
            found, divergence, error = self.course.unchanged(), 0.0, 0.0
        else:
            with recycled():
                found = self._race(model)
            divergence, error = self._divergence(found.items)
        ms, noise = (self.priced(base_dtype, layers), MOST_NOISE) if self.priced else self.milliseconds(model)
        return Outcome(
            drop=found.drop,
            error=found.error,
            margin=found.margin,
            divergence=divergence,
            divergence_error=error,
            ms=ms,
            noise=noise,
            items=found.items,
        )

    def measure(self, base_dtype: str, layers: dict[str, str]) -> tuple[float, int]:
        """(divergence of a map on the first `few` items, items read).

        Raises:
            NumericsError: it is NaN or infinite.
        """
        self.against.forget()
        with recycled():
            for rows, output, batch in self.replay.outputs(base_dtype, layers):
                self.against.compare(rows, output, batch)
        found, _ = self._divergence(self.few)
        if not math.isfinite(found):
            raise NumericsError(f"The divergence of a one-layer map of {base_dtype} is not finite.")
        return found, self.few

    def _race(self, model: nn.Module) -> Figures:
        kept: list[torch.Tensor | None] = list(self.base.reduced)
        count = 0
        for part, plan in zip(self.track.items, self.track.plans, strict=True):
            count += len(part)
            if plan:  # otherwise its rows came with an earlier chunk
                values = self._read(model, plan, kept)
            figures = self.course.figures(values, count)
            if figures.within is not None:
                break
        return figures

    def _read(self, model: nn.Module, plan: Plan, kept: list[torch.Tensor | None]) -> np.ndarray:
        return evaluate_further(
            model, self.course.task, "search", plan, kept, reference=self.base.reduced, observe=self.against.compare,
            notify=self.notify,
        )  # fmt: skip

    def _divergence(self, count: int) -> tuple[float, float]:
        """Of the whole split, and its error, from the first `count` items: each stands for those passed over, too."""
        order, task = self.course.order, self.course.task
        if task.rows("search") != task.items("search"):
            return self.against.mean()
        weights = order.weights(count)
        weights *= len(order.items) / weights.sum()  # what they stand for together is the split
        return self.against.mean(dict(zip(order.items[:count].tolist(), weights, strict=True)))


def make_judge(session: Session, price: Price, update: Callable[[int, int], None], rounds: int = ROUNDS) -> Judge:
    """Run the float model on the search split.

    Args:
        rounds: in which a map is timed, at most.
    """
    s, task = session.settings, session.task
    against, order = Divergence(task), Order.by_chance(task.items("search"), s.seed)
    # The outputs that are kept are of the items read first. Two parts and not chunks: batches of like lengths, little padding.
    track = Track.of(task, s.eval_batch_size, [part.tolist() for part in np.array_split(order.items, 2)])
    base = evaluate_split(
        session.model, task, "search", plan=[rows for plan in track.plans for rows in plan],
        batch_size=s.eval_batch_size, is_reference=True, observe=against.keep, progress=update,
        notify=session.progress.note,
    )  # fmt: skip
    if s.race:
        order = order_of(task, session.budget, base.reduced, s.seed)
    # Where the float model did not fit, most maps would not either.
    size = min(base.batch_size, s.eval_batch_size)
    track = Track.of(task, size, order.chunks() if s.race else [order.items.tolist()])
    course = Course(task, session.budget, base.values, order)
    names = [layer.name for layer in session.inventory.layers]
    few = _few(task, track.items[0])
    replay = Replay(task, Track.of(task, size, [track.items[0][:few]]).plans[0], names, session.assembler.assemble)
    measure = _clock(session, price.model_ms["float32"], rounds)
    return Judge(course, track, base, against, session.assembler.assemble, measure, session.progress.note, replay, few)


def _few(task: Task, items: Sequence[int]) -> int:
    """How many of the first chunk's items a one-layer map is read on: where every token is an output, as many as a profile
    scores."""
    if not task.positions:
        return len(items)
    lengths = task.lengths("search")
    tokens = np.cumsum([sum(lengths[row] for row in task.rows_of("search", [item])) for item in items])
    return min(len(items), 1 + int(np.searchsorted(tokens, POSITIONS)))


def _clock(session: Session, float_ms: float, rounds: int) -> Callable[[nn.Module], tuple[float, float]]:
    """Measures a model's latency in turns with the float32 model's, on as many rows of the example as take `ANCHOR_MS`.

    What a machine is slowed down by between two maps slows both. How much longer the float32 model takes on the whole
    example is measured once, here.

    Args:
        float_ms: the float32 model's, on the whole example, which the latencies are told beside.
    """
    task, rest = session.task, session.runtime.rest_seconds
    example = task.example(session.batch_size, session.seq_len)
    rows = min(session.batch_size, max(1, math.ceil(session.batch_size * ANCHOR_MS / float_ms)))
    anchor = forward_call(session.model, task, task.example(rows, session.seq_len))
    share = 1.0
    if rows < session.batch_size:
        both = {"whole": forward_call(session.model, task, example), "anchor": anchor}
        times = time_models(both, rounds=5, warmup=1, max_seconds=3.0, rest_seconds=rest)
        share = times["anchor"][0] / times["whole"][0]

    def milliseconds(model: nn.Module) -> tuple[float, float]:
        call = forward_call(model, task, example)
        call()  # the anchor has been called often enough
        pair = {"map": call, "anchor": anchor}
        times = time_models(pair, rounds=rounds, warmup=0, max_seconds=3.0, rest_seconds=rest, settled=SETTLED)
        return times["map"][0] / times["anchor"][0] * share * float_ms, times["map"][1] / times["map"][0]

    return milliseconds


def expected_minutes(session: Session, judge: Judge) -> float:
    """How long search and certification take if all trials are needed."""
    s, task = session.settings, session.task
    passes = 0.6 * s.trials + 2.5 * task.rows("certification") / task.rows("search")
    return judge.base.seconds * passes / 60 + 1
