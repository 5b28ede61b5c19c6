"""The same stages in Python, on a folder, a hub id, or any `torch.nn.Module` with a task object."""

from __future__ import annotations

import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoquant import artifacts, pipeline
from autoquant.bench import run_bench
from autoquant.certify.worker import run_job
from autoquant.checkpoint import format_for, read_layer_map, write_checkpoint
from autoquant.errors import FolderError, LayerMapError, UsageError
from autoquant.evaluation import evaluate_split, forward_call, time_models
from autoquant.exports import load, weight_bytes
from autoquant.helping import help_search
from autoquant.models.heads import head_of
from autoquant.models.layers import inspect
from autoquant.models.loading import architectures, load_model, load_processor, resolve, task_for
from autoquant.profile import input_ranges
from autoquant.report import render_bench_html
from autoquant.search import mask
from autoquant.session import CHOICE, Progress, Session, now
from autoquant.settings import Settings
from autoquant.tasks import TASKS, Task, make
from autoquant.tasks.base import batches
from autoquant.values import LayerMap

EXIT_CODES = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}
RUNS = Path("runs")
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


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


def apply(
    model: str | Path | nn.Module,
    layer_map: str | Path | LayerMap,
    out: str | Path,
    *,
    task: str | Task | None = None,
    data: str | Path | None = None,
    columns: Mapping[str, str | int] | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint of `model` under a layer map, also one found on another model of the same architecture.

    Args:
        task, data: when given, the ranges of static schemes are calibrated again on them.

    Returns:
        what `write_checkpoint` returns.

    Raises:
        LayerMapError: the map does not fit the model; the message says where.
    """
    found = layer_map if isinstance(layer_map, LayerMap) else read_layer_map(layer_map)
    out = artifacts.empty_folder(Path(out), "Choose another --out folder.")
    if isinstance(model, nn.Module):
        return write_checkpoint(model, _calibrated(model, found, task if isinstance(task, Task) else None), out)
    path = resolve(str(model))
    name = task if isinstance(task, str) else None
    loaded = load_model(str(model), _auto_class(path, name, found), trust_remote_code=trust_remote_code)
    built = task if isinstance(task, Task) else None
    if data is not None:
        name = name or task_for(path) or "retrieval"
        built = make(name, str(data), loaded.processor, columns=columns, model=loaded.model)
    found = _calibrated(loaded.model, found, built)
    layers = inspect(loaded.model).layers
    found = replace(found, format=format_for(layers, found.layers, found.base_dtype, model=loaded.model), verdict={})
    return write_checkpoint(loaded.model, found, out, source=loaded.path)


def evaluate(
    checkpoint: str | Path | nn.Module,
    task: str | Task | None = None,
    data: str | Path | None = None,
    *,
    split: str = "certification",
    batch_size: int | None = None,
    seq_len: int | None = None,
    eval_batch_size: int = 32,
    threads: int | None = None,
    trust_remote_code: bool = False,
    quiet: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Metric, latency, bytes and peak memory of any checkpoint, float or quantized, measured in fresh processes.

    Args:
        checkpoint: folder, hub id or `default`; a module is measured in this process, without bytes and peak memory.
        options: `columns`, `metric`, `seed`, `max_length`, `sizes`, `test_data` of the task.
    """
    if threads:
        torch.set_num_threads(threads)
    if isinstance(checkpoint, nn.Module):
        if not isinstance(task, Task):
            raise UsageError("A module needs a Task object to be evaluated with.")
        example = task.example(batch_size or task.batch_size, seq_len or task.seq_len)
        found = evaluate_split(checkpoint, task, split, batch_size=eval_batch_size)
        ms, noise = time_models({"model": forward_call(checkpoint, task, example)})["model"]
        return {
            "metric": task.metric,
            "value": found.metric,
            "items": len(found.values),
            "latency_ms": ms,
            "latency_noise_ms": noise,
        }
    path = resolve(str(checkpoint))
    name = task if isinstance(task, str) else task_for(path) if data else "retrieval"
    if name not in TASKS:
        raise UsageError(f"Say what the model is judged by: --task, one of {', '.join(TASKS)}.")
    if name == "fidelity":
        raise UsageError(
            "Fidelity compares a quantized model with its float model; 'autoquant search --task fidelity' does."
        )
    model = load(path, trust_remote_code=trust_remote_code)
    processor = load_processor(path, trust_remote_code=trust_remote_code)
    built = make(name, None if data is None else str(data), processor, model=model, **options)
    del model
    job = {
        "task": built.spec(),
        "processor": str(path),
        "trust_remote_code": trust_remote_code,
        "shape": {"batch_size": batch_size or built.batch_size, "seq_len": seq_len or built.seq_len},
        "threads": torch.get_num_threads(),
        "quiet": quiet,
    }
    item = {"path": str(path), "trust_remote_code": trust_remote_code}
    with artifacts.scratch_folder() as folder:
        answer = run_job(
            {**job, "kind": "evaluate", "split": split, "model": item, "batch_size": eval_batch_size},
            folder,
            "evaluate",
        )
        times = run_job(
            {**job, "kind": "latency", "models": {"model": item}, "rounds": 25, "max_seconds": 20.0}, folder, "latency"
        )
    return {
        "checkpoint": str(checkpoint),
        "task": built.name,
        "split": split,
        "metric": built.metric,
        "value": answer["metric"],
        "items": answer["items"],
        "latency_ms": times["ms"]["model"],
        "latency_noise_ms": times["noise"]["model"],
        "shape": job["shape"],
        "threads": job["threads"],
        "bytes": weight_bytes(path),
        "peak_memory_bytes": answer["peak_memory_bytes"],
    }


def bench(
    checkpoint: str | Path,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seq_lens: Sequence[int] | None = None,
    threads: Sequence[int] | None = None,
    seconds: float = 3.0,
    out: str | Path | None = None,
    trust_remote_code: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Latency, throughput and memory of a checkpoint at many shapes, on random inputs; needs no task and no data.

    It runs as `autoquant.load` loads it, each number of threads in a process of its own; one forward pass gives hidden
    states, logits, or (language models) the logits of every position, without a cache.

    Args:
        checkpoint: folder, hub id or `default`, float or quantized.
        seq_lens: tokens of each row; default: 128, or what the model takes. Not for images.
        threads: default: torch's.
        seconds: of timing for each shape, at least.
        out: an HTML page is written there.

    Returns:
        `points`, one a shape: p50_ms, p90_ms, p99_ms (None of fewer than 100 calls), spread_ms, noise, items_per_s,
        tokens_per_s, peak_memory_bytes, …; `best`, one for each number of threads and length: batch_size (None where the
        machine was too noisy to tell, with the reason), like, saturates_at, …; `noisy`; the machine and the checkpoint.

    Raises:
        UsageError: a setting that cannot work, or a model whose inputs cannot be made up.
        AutoquantError: the checkpoint cannot be loaded, or memory ran out.
    """
    if isinstance(checkpoint, nn.Module):
        raise UsageError("A module cannot be opened in a fresh process: give the folder of a checkpoint.")
    path, progress = resolve(str(checkpoint)), Progress(quiet)
    with progress.bar("bench", "round") as update:
        found = run_bench(
            path, batch_sizes=batch_sizes, seq_lens=seq_lens, threads=threads or (torch.get_num_threads(),),
            seconds=seconds, trust_remote_code=trust_remote_code, say=progress.say, advance=update,
        )  # fmt: skip
    found = {"checkpoint": str(checkpoint), "created": now(), **found}
    if out is not None:
        artifacts.write_text(Path(out), render_bench_html(found))
    return found


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


def _auto_class(path: Path, task: str | None, found: LayerMap) -> str:
    """The class to load a model with: what the task wants, or what the model was saved as."""
    names = architectures(path)
    recorded = (found.found_on.get("task") or {}).get("task") if isinstance(found.found_on, Mapping) else None
    for name in (task, recorded):
        if name in TASKS:
            return TASKS[name].auto_class_for(names)
    return next((head.auto_class for name in names if (head := head_of(name)) is not None), "AutoModel")


def _calibrated(model: nn.Module, found: LayerMap, task: Task | None) -> LayerMap:
    """The map with the ranges of its static schemes calibrated on `task`'s calibration split, if there is one."""
    static = {name for name, scheme in found.layers.items() if scheme.endswith("/a8-static")}
    if task is None or not static:
        missing = static - set(found.input_absmax)
        if missing:
            raise LayerMapError(
                f"Layer '{sorted(missing)[0]}' has a static scheme but the map holds no range for it. "
                "Give calibration data: --task and --data."
            )
        return found
    layers = [layer for layer in inspect(model).layers if layer.name in static]
    with input_ranges(model, layers) as ranges, torch.no_grad():
        for rows in batches(task, "calibration", 16):
            task.forward(model, task.batch("calibration", rows))
    return replace(found, input_absmax={name: item.absmax for name, item in ranges.items()})
