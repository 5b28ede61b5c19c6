"""One engine in one process: `python -m benchmarks.peers.worker job.json`.

Answers are lines of JSON on what was standard output when the process began; whatever a library prints goes to standard
error. `serve` loads the engine's files, reports memory and output, then waits: each line on standard input is one round.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from autoquant.memory import peak, reset_peak
from benchmarks.peers.engines import engine
from benchmarks.peers.engines.base import Engine, Round, UnsupportedError
from benchmarks.peers.models import MODELS, STEPS, Shape, Source

Send = Callable[[dict[str, Any]], None]
CALLS_FOR_MS = 30.0
"""A round is as many calls as take about this long, and its time is their median."""
LONG_MS = 100.0
"""Calls longer than this are timed without another call before them: waking up is a small part of it."""


def inputs(job: dict[str, Any], source: Source, chosen: Engine, send: Send) -> None:
    """Real inputs of exactly one shape, without padding; for decoding also the float32 model's cache."""
    shape = Shape(**job["shape"])
    length = None if shape.length is None else shape.length + (STEPS if shape.kind == "decode" else 0)
    found = source.arrays(source.task.example(shape.batch, length))
    if shape.kind == "decode":
        import torch
        from transformers import DynamicCache

        from benchmarks.peers.engines.torch_engine import open_torch

        ids = torch.from_numpy(found["input_ids"])
        model = open_torch(source.folder, source, "float32")
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(input_ids=ids[:, : shape.length], past_key_values=cache, use_cache=True)
        found = {"tokens": ids[:, shape.length :].numpy()}
        for number, layer in enumerate(cache.layers):
            found |= {f"key_{number}": layer.keys.numpy(), f"value_{number}": layer.values.numpy()}
    np.savez(job["inputs"], **found)
    send({"tokens": source.task.describe()["data"]})


def build(job: dict[str, Any], source: Source, chosen: Engine, send: Send) -> None:
    begin = time.perf_counter()
    chosen.build(source, job["kind"], Path(job["folder"]))
    send({"seconds": time.perf_counter() - begin})


def serve(job: dict[str, Any], source: Source, chosen: Engine, send: Send) -> None:
    shape = Shape(**job["shape"])
    with np.load(job["inputs"]) as file:
        arrays = dict(file)
    chosen.warm_imports(source)
    before = reset_peak()
    begin = time.perf_counter()
    served = chosen.load(source, Path(job["folder"]), shape, job["threads"])
    work = served.decode(arrays) if shape.kind == "decode" else served.forward(arrays)
    output = None
    for _ in range(2):
        work.before()
        output = work.call()
    answer = {"peak_bytes": max(0, peak() - before), "load_seconds": time.perf_counter() - begin}
    np.save(job["output"], np.asarray(served.array(output), dtype=np.float32))
    del output
    typical = min(_timed(work) for _ in range(2))
    calls = max(1, min(30, math.ceil(CALLS_FOR_MS / typical)))
    send({**answer, "resident_bytes": _resident()})
    for _line in sys.stdin:
        if typical < LONG_MS:
            _timed(work)
        send({"ms": float(np.median([_timed(work) for _ in range(calls)]) / work.steps)})


def judge(job: dict[str, Any], source: Source, chosen: Engine, send: Send) -> None:
    """The task's metric on the certification split, which neither calibration nor accuracy control has seen."""
    from autoquant.evaluation import evaluate_split
    from benchmarks.peers.engines.adapter import AsModule

    task = source.task
    served = chosen.load(source, Path(job["folder"]), None, job["threads"])
    found = evaluate_split(AsModule(served, source), task, "certification", batch_size=job["batch_size"])
    send({
        "metric": found.metric, "name": task.metric, "items": len(found.values), "data": task.describe()["data"],
        "higher_is_better": task.higher_is_better, "relative": task.relative,
    })  # fmt: skip


JOBS = {"inputs": inputs, "build": build, "serve": serve, "judge": judge}


def _timed(work: Round) -> float:
    work.before()
    begin = time.perf_counter()
    work.call()
    return (time.perf_counter() - begin) * 1e3


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(path: str) -> int:
    channel: TextIO = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=channel, flush=True)

    job = json.loads(Path(path).read_text())
    source = Source(MODELS[job["model"]], Path(job["source"]), Path(job["data"]), job["seed"])
    chosen = engine(job["engine"], {name: Path(folder) for name, folder in job["folders"].items()})
    try:
        JOBS[job["job"]](job, source, chosen, send)
    except UnsupportedError as error:
        send({"unsupported": str(error)})
    except Exception as error:  # whatever an engine raises is the reason its row shows
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        send({"error": f"{type(error).__name__}: {first}"[:300]})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
