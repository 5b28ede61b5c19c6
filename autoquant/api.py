"""Runs in Python: search, go on, pick, profile, on a folder, a hub id, or any `torch.nn.Module` with a task object."""

from __future__ import annotations

import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from autoquant import artifacts, pipeline
from autoquant.checkpoint import read_layer_map
from autoquant.errors import FolderError, UsageError
from autoquant.exports import load
from autoquant.helping import help_search
from autoquant.search import mask
from autoquant.session import CHOICE, Progress, Session, now
from autoquant.settings import Settings
from autoquant.tasks import Task
from autoquant.values import EXIT_CODES, LayerMap

RUNS = Path("runs")


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: the run folder: layer_map.yaml, checkpoint/, report.html, report.json, profile.json, price.json,
            study.journal, settings.yaml.
        report: the content of report.json.
    """

    folder: Path
    report: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        return self.report["verdict"]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def layer_map(self) -> LayerMap:
        return read_layer_map(self.folder / pipeline.MAP)

    def load(self, **options: Any) -> nn.Module:
        """The shipped checkpoint, ready to run (`model=` is needed for a module of your own)."""
        return load(self.folder / pipeline.CHECKPOINT, **options)


def search(
    model: str | Path | nn.Module = "default",
    task: str | Task | None = None,
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Find, write and certify the best per-layer quantization of `model` under a budget.

    Args:
        model: folder, hub id, `default` (the embedded one), or a module in eval mode and float32.
        task: name of a task, or a `Task` (needed for a module).
        data: file, folder or hub id; None for the embedded docstrings.
        out: run folder, which must not hold anything; by default the next free one below `runs/`.
        quiet: no progress.
        options: fields of `Settings`: budget, objective, space, trials, max_minutes, seed, …

    Raises:
        UsageError: something in the request cannot work.
        AutoquantError: something failed.
    """
    storage = options.pop("storage", None)
    settings = _settings(model, task, data, {**options, "storage": None if storage is None else mask(storage)})
    folder = new_folder(out, settings)
    if storage is not None:  # a database is shared by many runs
        mark = artifacts.fingerprint([settings.to_dict(), str(folder.resolve()), now()])
        settings = replace(settings, study=f"{folder.name}-{mark[:8]}")
    artifacts.write_yaml(
        folder / pipeline.SETTINGS, settings.to_dict(), "What this run was asked to do; read by --resume."
    )
    with _given_back(folder):
        return Result(folder, pipeline.run(_session(settings, folder, quiet, model, task, storage)))


def resume(
    folder: str | Path, *, quiet: bool = False, model: nn.Module | None = None, task: Task | None = None, **changes: Any
) -> Result:
    """Continue a run that was killed, or give it more `trials` or `max_minutes`. Finished stages are not run again.

    Args:
        changes: trials, max_minutes or workers; storage, the run's own again with its password.

    Raises:
        UsageError: `storage` is another one.
        FolderError: `folder` is no run folder.
        StaleError: the model or the data changed since.
    """
    folder = Path(folder)
    storage = changes.pop("storage", None)
    settings = replace(_with_storage(_settings_of(folder), storage), **changes)
    if changes:
        artifacts.write_yaml(
            folder / pipeline.SETTINGS, settings.to_dict(), "What this run was asked to do; read by --resume."
        )
    return Result(folder, pipeline.run(_session(settings, folder, quiet, model or settings.model, task, storage)))


def worker(
    folder: str | Path, *, storage: str | None = None, threads: int | None = None, quiet: bool = False,
    name: str | None = None,
) -> tuple[int, str]:  # fmt: skip
    """Help the search of a run until it ends: evaluate maps that its main process gives to this one.

    Args:
        folder: the run folder, or a copy of it on another machine, where model and data are found in the same place.
        storage: URL of the study's storage with its password, as the search was given it.
        threads: CPU threads; by default the run's.
        name: of this worker, where it was started by the main process.

    Returns:
        how many maps were evaluated, and why the search ended.

    Raises:
        FolderError: the run has not come to its search yet.
        StaleError: the model, the data or what runs here is not what the search began with.
        AutoquantError: the main process is not there.
    """
    folder = Path(folder)
    settings = replace(_with_storage(_settings_of(folder), storage), workers=1)
    if (folder / CHOICE).is_file():  # what --runtime auto took there
        settings = replace(settings, runtime=artifacts.read_json(folder / CHOICE)["chosen"])
    settings = replace(settings, threads=threads or settings.threads)
    name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    return help_search(_session(settings, folder, quiet, settings.model, None, storage), name)


def _with_storage(settings: Settings, storage: str | None) -> Settings:
    if storage is not None and mask(storage) != settings.storage:
        raise UsageError(
            f"--storage {mask(storage)}: this run's study is in {settings.storage or 'its own folder'}. "
            + ("Give that, with its password." if settings.storage else "Leave --storage out.")
        )
    return settings


def pick(
    run: str | Path, budget: float, *, confidence: float | None = 0.95, quiet: bool = False,
    model: nn.Module | None = None, task: Task | None = None,
) -> Result:  # fmt: skip
    """Certify another point of a finished search's front, without searching again.

    Returns:
        the result, in the folder `picks/BUDGET` of the run.

    Raises:
        FolderError: `run` holds no finished search.
        StaleError: the model or the data changed since.
    """
    run = Path(run)
    settings = replace(_settings_of(run), budget=budget, confidence=confidence)
    if not (run / pipeline.FRONT).is_file():
        raise FolderError(f"{run} has no {pipeline.FRONT}: finish the search first: autoquant search --resume {run}")
    folder = run / pipeline.PICKS / f"{budget:g}"
    folder.mkdir(parents=True, exist_ok=True)
    return Result(folder, pipeline.pick(_session(settings, folder, quiet, model or settings.model, task), run))


def _settings_of(folder: Path) -> Settings:
    path = folder / pipeline.SETTINGS
    if not path.is_file():
        raise FolderError(
            f"{folder} is no run folder: it has no {pipeline.SETTINGS}. Start one: autoquant search --out {folder}"
        )
    return Settings.from_dict(artifacts.read_yaml(path), str(path))


def profile(
    model: str | Path | nn.Module = "default",
    task: str | Task | None = None,
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Only the sensitivity of each layer to each scheme, and its page; arguments as in `search`."""
    settings = _settings(model, task, data, options)
    folder = new_folder(out, settings, "profile")
    artifacts.write_yaml(folder / pipeline.SETTINGS, settings.to_dict())
    with _given_back(folder):
        return Result(folder, pipeline.run_profile(_session(settings, folder, quiet, model, task)))


def report(folder: str | Path) -> Path:
    """Render `report.html` of a run folder again; returns its path."""
    folder = Path(folder)
    if not (folder / pipeline.REPORT).is_file():
        raise FolderError(
            f"{folder} has no {pipeline.REPORT}. Finish the run first: autoquant search --resume {folder}"
        )
    return pipeline.render(folder)


def new_folder(out: str | Path | None, settings: Settings, suffix: str = "") -> Path:
    """The run folder: the one that was asked for, or the next free one below `runs/`."""
    if out is not None:
        return artifacts.empty_folder(
            Path(out), f"To continue that run: --resume {out}. To start anew: another --out folder."
        )
    words = [Path(settings.model).name, settings.task or "", suffix]
    name = re.sub(r"[^\w.-]+", "-", "-".join(word for word in words if word)).lower()
    number = 1
    while (RUNS / f"{name}-{number}").exists():
        number += 1
    return artifacts.empty_folder(RUNS / f"{name}-{number}", "")


@contextmanager
def _given_back(folder: Path) -> Iterator[None]:
    """Remove the run folder again when the request could not work and no stage has left anything in it."""
    try:
        yield
    except UsageError:
        if {path.name for path in folder.iterdir()} <= {pipeline.SETTINGS}:
            shutil.rmtree(folder)
        raise


def _settings(model: Any, task: Any, data: Any, options: Mapping[str, Any]) -> Settings:
    unknown = set(options) - set(Settings.__dataclass_fields__)
    if unknown:
        raise UsageError(
            f"Unknown settings: {', '.join(sorted(unknown))}. Valid: {', '.join(Settings.__dataclass_fields__)}."
        )
    if isinstance(model, nn.Module) and not isinstance(task, Task):
        raise UsageError("A module needs a Task object: autoquant.search(module, task=…). See autoquant.tasks.Task.")
    return Settings(
        model=type(model).__name__ if isinstance(model, nn.Module) else str(model),
        task=task.name if isinstance(task, Task) else task,
        data=None if data is None else str(data),
        **options,
    )


def _session(
    settings: Settings, folder: Path, quiet: bool, model: Any, task: Any, storage: str | None = None
) -> Session:
    return Session(
        settings,
        folder,
        Progress(quiet),
        module=model if isinstance(model, nn.Module) else None,
        given_task=task if isinstance(task, Task) else None,
        storage=storage,
    )
