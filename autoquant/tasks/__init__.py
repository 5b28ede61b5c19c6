"""What a model is judged by. One file for each kind of task; `TASKS` is the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autoquant.errors import DataError, StaleError, pick, reject_unknown
from autoquant.tasks.base import SPLITS, Batch, Task, batches, to_device
from autoquant.tasks.causal_lm import CausalLM
from autoquant.tasks.classification import Classification
from autoquant.tasks.dataset import DataTask, Forward
from autoquant.tasks.facts import Facts
from autoquant.tasks.fidelity import Fidelity
from autoquant.tasks.image_classification import ImageClassification
from autoquant.tasks.retrieval import Retrieval
from autoquant.tasks.sts import STS

__all__ = [
    "SPLITS",
    "STS",
    "TASKS",
    "Batch",
    "CausalLM",
    "Classification",
    "DataTask",
    "Facts",
    "Fidelity",
    "Forward",
    "ImageClassification",
    "Retrieval",
    "Task",
    "batches",
    "from_spec",
    "make",
    "to_device",
]

TASKS: dict[str, type[DataTask]] = {
    task.name: task for task in (Retrieval, STS, Classification, CausalLM, ImageClassification, Fidelity)
}
"""The word behind --task → its class."""


def make(
    name: str,
    data: str | Path | None,
    processor: Any,
    *,
    columns: Mapping[str, str | int] | None = None,
    seed: int = 0,
    max_length: int | None = None,
    sizes: Mapping[str, int] | None = None,
    metric: str | None = None,
    test_data: str | Path | None = None,
    model: nn.Module | Facts | None = None,
    forward: Forward | None = None,
    undivided: bool = False,
) -> DataTask:
    """The task called `name` on `data`; arguments as in `DataTask`. Pass the float `model` wherever there is one.

    Raises:
        DataError: an unknown task, or data that it cannot use.
    """
    return pick(TASKS, name, "task", DataError)(
        data,
        processor,
        columns=columns,
        seed=seed,
        max_length=max_length,
        sizes=sizes,
        metric=metric,
        test_data=test_data,
        model=model,
        forward=forward,
        undivided=undivided,
    )


SPEC_KEYS = (
    "task", "data", "test_data", "columns", "seed", "max_length", "sizes", "metric", "model", "settings",
    "own_forward", "undivided", "fingerprint",
)  # fmt: skip


def from_spec(spec: Mapping[str, Any], processor: Any, forward: Forward | None = None) -> DataTask:
    """The task whose `spec()` this is, in a fresh process: same rows, same splits, same judgement.

    Raises:
        DataError: the spec is malformed, or the task had a forward pass of its own and none is given.
        StaleError: the data changed since.
    """
    reject_unknown(spec, SPEC_KEYS, "task", DataError)
    if spec.get("own_forward") and forward is None:
        raise DataError("This task was made with forward=…: pass the same function again.")
    same = {key: spec.get(key) for key in ("columns", "max_length", "sizes", "metric", "test_data", "settings")}
    task = pick(TASKS, spec.get("task", ""), "task", DataError)(
        spec.get("data"),
        processor,
        seed=spec.get("seed", 0),
        model=Facts(**(spec.get("model") or {})),
        forward=forward,
        undivided=bool(spec.get("undivided")),
        **same,
    )
    then, now = spec.get("fingerprint"), task.fingerprint()
    if then is not None and then != now:
        raise StaleError(
            f"The data of --task {task.name} changed since: fingerprint {then} then, {now} now. "
            "Restore the data, or start a new run."
        )
    return task
