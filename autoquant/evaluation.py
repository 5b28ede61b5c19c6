"""Run a task's split through a model, and time a model: the two measurements that every stage is built on."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autoquant import artifacts, memory
from autoquant.errors import NumericsError
from autoquant.tasks.base import Batch, Task, batches, cut, to_device

Notify = Callable[[str], None]
Observe = Callable[[list[int], Tensor, Batch], None]

LEAST_ROUNDS = 3
"""Rounds of a timing at least: the fewest with a median that one disturbed call does not move."""
SELDOM = 3
"""Rounds for each call of what is called seldom."""
TOKENS = 2048
"""Of a batch on the CPU, padding counted, but for one longer row: more at once are not read sooner, and take more memory."""
SETTLED_CALLS = 5
"""Calls of each model at least before its spread is believed."""
SETTLED = 0.01
"""Standard error of a median, as a share of it, from which on more calls say nothing that matters."""


@dataclass(frozen=True)
class Evaluation:
    """What a model did on one split.

    Attributes:
        values: (items,) float64, one value an item.
        metric: the task's metric.
        reduced: what was kept of each row (tasks that compare with the float model need it as reference).
        batch_size: smaller than asked for if memory ran out.
    """

    values: np.ndarray
    metric: float
    reduced: Tensor
    batch_size: int
    seconds: float

    def save(self, path: Path) -> None:
        """Item values and what was kept of the rows, as an npz that `saved_values` and `saved_rows` read."""
        with artifacts.atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, values=self.values, reduced=self.reduced.numpy())


def saved_values(path: str | Path) -> np.ndarray:
    """`values` of an evaluation that was saved."""
    with np.load(path) as file:
        return file["values"]


def saved_rows(path: str | Path) -> Tensor:
    """`reduced` of an evaluation that was saved."""
    with np.load(path) as file:
        return torch.from_numpy(file["reduced"])


def evaluate_split(
    model: nn.Module,
    task: Task,
    split: str,
    *,
    batch_size: int = 32,
    plan: Sequence[Sequence[int]] | None = None,
    reference: Tensor | None = None,
    is_reference: bool = False,
    observe: Observe | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    notify: Notify = lambda message: None,
) -> Evaluation:
    """All rows of a split, without gradients. Out of memory halves the batch and says so through `notify`.

    Args:
        plan: rows of each batch, together all of the split; None for batches of like lengths.
        reference: `reduced` of the float32 model.
        is_reference: `model` is that float32 model itself.
        observe: is called with (rows, output, batch).

    Raises:
        NumericsError: the model gives NaN or infinity.
    """
    start = time.perf_counter()
    kept: list[Tensor | None] = [None] * task.rows(split)
    plan = batches(task, split, batch_size) if plan is None else plan
    with memory.recycled():
        size = run_rows(model, task, split, plan, kept, observe=observe, progress=progress, notify=notify)
    stacked = _stack(kept)
    values = task.score(split, stacked, stacked if is_reference else reference)
    return Evaluation(values, task.aggregate(split, values), stacked, size or batch_size, time.perf_counter() - start)


def evaluate_further(
    model: nn.Module,
    task: Task,
    split: str,
    plan: Sequence[Sequence[int]],
    kept: list[Tensor | None],
    *,
    reference: Tensor,
    observe: Observe | None = None,
    notify: Notify = lambda message: None,
) -> np.ndarray:
    """Run some more rows of a split; returns the values of all items, of which those without their rows say nothing.

    Args:
        kept: what is known of each row, filled in place; begin with the rows of `reference`.
        reference: `reduced` of the float32 model.

    Raises:
        NumericsError: the model gives NaN or infinity.
    """
    run_rows(model, task, split, plan, kept, observe=observe, notify=notify)
    return task.score(split, _stack(kept), reference)


def run_rows(
    model: nn.Module,
    task: Task,
    split: str,
    plan: Sequence[Sequence[int]],
    kept: list[Tensor | None],
    *,
    observe: Observe | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    notify: Notify = lambda message: None,
) -> int | None:
    """Put what must be kept of each row into `kept`; returns the batch size that memory ran out for to, None if never.

    Raises:
        NumericsError: the model gives NaN or infinity.
    """
    device, size, done = device_of(model), None, 0
    lengths, room = task.lengths(split), TOKENS if device.type == "cpu" else sys.maxsize
    left = [part for rows in plan for part in cut(rows, lengths, room)]
    total = sum(map(len, left))
    with torch.inference_mode():
        while left:
            rows = left[0]
            try:
                batch = to_device(task.batch(split, rows), device)
                output = task.forward(model, batch)
                reduced = task.reduce(output, batch)
            except (MemoryError, torch.OutOfMemoryError):
                if len(rows) == 1:
                    raise
                size = max(1, len(rows) // 2)
                notify(f"Out of memory at {len(rows)} rows a batch; continuing with {size}.")
                left = [part[i : i + size] for part in left for i in range(0, len(part), size)]
                continue
            if not bool(torch.isfinite(reduced).all()):
                raise NumericsError(
                    f"The model gives NaN or infinite outputs on the {split} split of task '{task.name}'."
                )
            if observe is not None:
                observe(rows, output, batch)
            for row, value in zip(rows, reduced.cpu(), strict=True):
                kept[row] = value
            del left[0]
            done += len(rows)
            progress(done, total)
    return size


def time_models(
    models: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    warmup: int = 3,
    max_seconds: float = 20.0,
    rest_seconds: float = 0.0,
    seldom: Collection[str] = (),
    settled: float = 0.0,
) -> dict[str, tuple[float, float]]:
    """Median and half the interquartile range, in ms, of each callable; calls alternate, so that drift hits all alike.

    At least `LEAST_ROUNDS` rounds are run, however slow.

    Args:
        rest_seconds: pause before each call. Threads of one engine that wait busily would disturb the next one's call.
        seldom: names that are called in every third round only: slow ones that the others are compared with.
        settled: rounds end once the standard error of every median is at most this share of it.
    """
    for call in models.values():
        for _ in range(warmup):
            begin = time.perf_counter()
            call()
            if time.perf_counter() - begin > max_seconds / 20:
                break
    times: dict[str, list[float]] = {name: [] for name in models}
    start = time.perf_counter()
    for number in range(rounds):
        for name, call in models.items():
            if number % SELDOM and name in seldom:
                continue
            if rest_seconds:
                time.sleep(rest_seconds)
            begin = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - begin) * 1e3)
        if number + 1 >= LEAST_ROUNDS and time.perf_counter() - start > max_seconds:
            break
        if settled and all(len(own) >= SETTLED_CALLS and _error(own) <= settled for own in times.values()):
            break
    return {name: spread(values) for name, values in times.items()}


def _error(values: list[float]) -> float:
    """Standard error of the median as a share of it: √(π/2) σ/√n of a normal sample, σ its interquartile range / 1.349."""
    middle, half = spread(values)
    return math.sqrt(math.pi / 2 / len(values)) * 2 * half / 1.349 / middle


def spread(values: list[float]) -> tuple[float, float]:
    """(median, half the interquartile range)."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float(high - low) / 2


def forward_call(model: nn.Module, task: Task, batch: Batch) -> Callable[[], None]:
    """One timed forward pass on `batch`, waiting for the device where there is one."""
    device = device_of(model)
    batch = to_device(batch, device)

    def call() -> None:
        with torch.inference_mode():
            task.forward(model, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def device_of(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _stack(rows: list[Tensor | None]) -> Tensor:
    """(rows, …); rows of different length (windows of tokens) are padded with -1."""
    tensors = [row for row in rows if row is not None]
    if len({tuple(t.shape) for t in tensors}) > 1:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=-1)
    return torch.stack(tensors)
