"""One checkpoint measured: its metric, latency, bytes and memory on a task, or its speed at many shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoquant import artifacts, forkserver
from autoquant.bench import run_bench
from autoquant.certify.worker import job_of, run_job
from autoquant.errors import UsageError
from autoquant.evaluation import evaluate_split, forward_call, time_models
from autoquant.exports import load, weight_bytes
from autoquant.models.loading import load_processor, resolve, task_for
from autoquant.report import render_bench_html
from autoquant.session import Progress, now
from autoquant.tasks import TASKS, Task, make

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@forkserver.serving()
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
    job = job_of(built, path, batch_size=batch_size, seq_len=seq_len, trust_remote_code=trust_remote_code, quiet=quiet)
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
