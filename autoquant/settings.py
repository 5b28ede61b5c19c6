"""What a run was asked to do: plain data, kept in the run folder so that `--resume` needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from autoquant.errors import StaleError, UsageError, pick
from autoquant.runtimes import RUNTIMES
from autoquant.search import OBJECTIVES, STRATEGIES, check_url
from autoquant.values import Budget

DEFAULT_TRIALS = 16
AUTO = "auto"
"""The runtime that is fastest here, of those that are installed."""


@dataclass(frozen=True)
class Settings:
    """All settings of a search (and of the stages that are run alone).

    Attributes:
        model: folder, hub id or `default`; a class name for a module that was handed over in Python.
        budget, relative, confidence: see `Budget`.
        batch_size, seq_len: the shape that latency and peak memory are measured at; None takes what is typical of the task.
        eval_batch_size: rows a batch when accuracy is measured; on a CPU fewer of long ones (`evaluation.TOKENS`).
        runtime: one of `RUNTIMES`, or `auto`: the fastest of those that are installed, measured before anything else.
        strategy, cold: how maps are proposed, and whether without the maps that a search begins with.
        race: stop judging a map as soon as it is known whether it is within the budget.
        fuse: one scheme for projections that engines fuse (q/k/v, gate/up); None: if the runtime does.
        max_mb, max_ms: hard caps on size and latency; with one, the smallest drop under it is looked for.
        rungs: quantized maps that may be tested on the certification data.
        workers: processes of this machine that evaluate maps at a time; each has its share of `threads`.
        storage: URL of the study's storage, without a password; None: a journal in the run folder.
        study: its name there.
        smooth: move outliers of layer inputs into weights before anything is quantized, where that changes nothing else.
        device: `cpu` or `cuda`.
    """

    model: str = "default"
    task: str | None = None
    data: str | None = None
    test_data: str | None = None
    columns: Mapping[str, str | int] | None = None
    metric: str | None = None
    max_length: int | None = None
    sizes: Mapping[str, int] | None = None
    budget: float = 0.01
    relative: bool = False
    confidence: float | None = 0.95
    objective: str = "balanced"
    space: str = "int8_fp16"
    max_mb: float | None = None
    max_ms: float | None = None
    strategy: str = "surrogate"
    cold: bool = False
    race: bool = True
    runtime: str = "torch"
    device: str = "cpu"
    trials: int = DEFAULT_TRIALS
    max_minutes: float | None = None
    rungs: int = 2
    workers: int = 1
    storage: str | None = None
    study: str | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    eval_batch_size: int = 32
    threads: int | None = None
    seed: int = 0
    smooth: bool = True
    gradient: bool = True
    fuse: bool | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        self.to_budget()
        pick(dict.fromkeys(OBJECTIVES), self.objective, "objective")
        pick(STRATEGIES, self.strategy, "strategy")
        pick({**RUNTIMES, AUTO: None}, self.runtime, "runtime")
        for name, lowest in (("trials", 1), ("batch_size", 1), ("eval_batch_size", 1), ("rungs", 1), ("workers", 1)):
            if getattr(self, name) is not None and getattr(self, name) < lowest:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {lowest}, not {getattr(self, name)}.")
        if self.storage is not None:
            check_url(self.storage)
        for name in ("max_minutes", "max_mb", "max_ms"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}.")

    def to_budget(self) -> Budget:
        return Budget(self.budget, self.relative, self.confidence)

    def to_dict(self) -> dict[str, Any]:
        value = asdict(self)
        value["notes"] = list(self.notes)
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], where: str) -> Settings:
        known = {item.name for item in fields(cls)}
        if unknown := set(value) - known:
            raise StaleError(f"{where} was written by another version: unknown settings {', '.join(sorted(unknown))}.")
        return cls(**{**value, "notes": tuple(value.get("notes") or ())})
