"""Measurements in a fresh process: `python -m autoquant.certify.worker job.json`.

The certified figures are those of a checkpoint as a user loads it: from the disk, by a process that has never seen the
float model. A job is plain JSON; so is the answer (per-item values in an npz beside it).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import PIPE
from typing import Any

import torch
from tqdm import tqdm

from autoquant import artifacts, forkserver
from autoquant.certify import remembered
from autoquant.errors import AutoquantError
from autoquant.evaluation import evaluate_split, forward_call, saved_rows, time_models
from autoquant.exports import load
from autoquant.memory import peak, reset_peak
from autoquant.models.loading import architectures, load_model, load_processor, open_stock
from autoquant.processes import exit_code_of, finish, last_words, start
from autoquant.runtimes.graph import as_written
from autoquant.tasks import TASKS, DataTask, Task, from_spec


def run_job(job: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """Run `job` in a fresh process and return its answer; `folder` keeps job and answer under `name`.

    What the float model gave on the very same job before is not measured again; `remembered` in its answer says where that
    was kept (see `certify.remembered`).

    Raises:
        AutoquantError: the process failed; the message holds its last line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, place = folder / f"{name}.json", remembered.place_of(job)
    if (known := remembered.recall(place, out.with_suffix(".npz"))) is not None:
        return known
    code, said = _run({**job, "out": str(out), "name": name}, folder / f"{name}.job.json")
    if code:
        raise AutoquantError(f"Measuring {name} in a fresh process failed: {last_words(said, code)}")
    answer = artifacts.read_json(out)
    remembered.keep(place, answer)
    return answer


def _run(job: dict[str, Any], path: Path) -> tuple[int, str]:
    """(exit code, what was written to stderr) of a fresh process: a fork of one that has only imported this, or a new one."""
    if (forks := forkserver.forks_of(forkserver.WORKER)) is not None:
        artifacts.write_json(path, job)
        errors = path.with_suffix(".log")
        code = forks.run(path, errors)
        said = errors.read_text("utf8", "replace") if errors.is_file() else ""
        errors.unlink(missing_ok=True)
        if code is not None:
            return code, said
    process = start(forkserver.WORKER, job, path, stderr=PIPE)
    said = finish(process)
    return process.returncode, said


def job_of(
    task: Task, processor: Any, *, batch_size: int | None = None, seq_len: int | None = None,
    trust_remote_code: bool = False, quiet: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """What every job says.

    Args:
        processor: folder of the model whose tokenizer or image processor makes the inputs.
        batch_size, seq_len: the shape that latency and memory are measured at; None takes what is typical of the task.
    """
    return {
        "task": task.spec(),  # type: ignore[attr-defined]
        "processor": str(processor),
        "trust_remote_code": trust_remote_code,
        "shape": {"batch_size": batch_size or task.batch_size, "seq_len": seq_len or task.seq_len},
        "threads": torch.get_num_threads(),
        "quiet": quiet,
    }


def task_of(job: Mapping[str, Any], **instead: Any) -> DataTask:
    """The task of a job, with other values `instead` of some of its description's."""
    processor = load_processor(job["processor"], trust_remote_code=job["trust_remote_code"])
    return from_spec({**job["task"], **instead}, processor)


def open_model(item: dict[str, Any], task: str) -> torch.nn.Module:
    """A checkpoint folder (`plain`: run as transformers would), or (`float`) the model that the user named, with the class
    that the task wants; `stock` opens with transformers what autoquant does not read."""
    device = item.get("device", "cpu")
    auto_class = TASKS[task].auto_class_for(architectures(item["path"])) if {"float", "stock"} & set(item) else ""
    if item.get("float"):
        return load_model(item["path"], auto_class, trust_remote_code=item["trust_remote_code"]).model.to(device)
    if item.get("stock"):
        return open_stock(item["path"], auto_class, trust_remote_code=item["trust_remote_code"])
    runtime = "torch" if item.get("plain") else item.get("runtime")
    model = load(item["path"], device=device, runtime=runtime, trust_remote_code=item["trust_remote_code"])
    return as_written(model) if item.get("plain") else model


def evaluate_job(job: dict[str, Any]) -> dict[str, Any]:
    """Load one checkpoint; measure peak memory at the shape, then item values and metric on a split."""
    task = task_of(job)
    example = task.example(job["shape"]["batch_size"], job["shape"].get("seq_len"))
    before = reset_peak()
    begin = time.perf_counter()
    model = open_model(job["model"], task.name)
    load_seconds = time.perf_counter() - begin
    call = forward_call(model, task, example)
    for _ in range(2):
        call()
    highest = peak() - before
    reference = saved_rows(job["reference"]) if job.get("reference") else None

    def advance(done: int, total: int) -> None:
        bar.update(done - bar.n)

    with tqdm(
        total=task.rows(job["split"]),
        desc=job["name"],
        unit="row",
        file=sys.stdout,
        leave=False,
        disable=True if job["quiet"] else None,
    ) as bar:
        found = evaluate_split(
            model, task, job["split"], batch_size=job["batch_size"], reference=reference,
            is_reference=bool(job["model"].get("float")),
            progress=advance, notify=lambda text: tqdm.write(text, file=sys.stdout),
        )  # fmt: skip
    values = Path(job["out"]).with_suffix(".npz")
    found.save(values)
    return {
        "class": type(model).__name__,
        "metric": found.metric,
        "items": len(found.values),
        "values": str(values),
        "peak_memory_bytes": max(0, highest),
        "load_seconds": load_seconds,
        "seconds": found.seconds,
        "batch_size": found.batch_size,
    }


def latency_job(job: dict[str, Any]) -> dict[str, Any]:
    """Load all models and time them in turns at the shape: medians and half the interquartile range, in ms."""
    task = task_of(job)
    example = task.example(job["shape"]["batch_size"], job["shape"].get("seq_len"))
    calls = {name: forward_call(open_model(item, task.name), task, example) for name, item in job["models"].items()}
    found = time_models(
        calls, rounds=job["rounds"], max_seconds=job["max_seconds"], rest_seconds=job.get("rest_seconds", 0.0),
        seldom=job.get("seldom", ()), settled=job.get("settled", 0.0),
    )  # fmt: skip
    return {
        "ms": {name: ms for name, (ms, _) in found.items()},
        "noise": {name: noise for name, (_, noise) in found.items()},
    }


JOBS = {"evaluate": evaluate_job, "latency": latency_job}


def main(path: str) -> int:
    job = artifacts.read_json(Path(path))
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    return exit_code_of(lambda: artifacts.write_json(Path(job["out"]), JOBS[job["kind"]](job)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
