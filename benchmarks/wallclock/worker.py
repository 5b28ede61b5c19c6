"""One tool in one process: searches, is judged, then answers a line with a timed round. Answers are lines of JSON."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.models import Source
from benchmarks.wallclock.tools import BATCH, JOBS, TOOLS, item_values

CALLS = 5
"""Of a round, whose time is their median."""


def drop(folder: Path, values: np.ndarray, source: Source, budget: float) -> float:
    """Against the float32 model, which is the first to be judged, and leaves its values for the others."""
    from autoquant.certify.judge import paired_drop
    from autoquant.values import Budget

    np.save(folder / "values.npy", values)
    reference = np.load(folder.parents[1] / "float32" / folder.name / "values.npy")
    return paired_drop(source.task, "certification", reference, values, Budget(budget))


def main(job: dict[str, object]) -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(answer: dict[str, object]) -> None:
        print(json.dumps(answer), file=channel, flush=True)

    try:
        torch.set_num_threads(int(str(job["threads"])))
        budget = float(str(job["budget"]))
        folder, what = Path(str(job["folder"])), JOBS[str(job["job"])]
        source = Source(what.model, Path(str(job["model"])), Path(str(job["data"])))
        folder.mkdir(parents=True, exist_ok=True)
        found = TOOLS[str(job["tool"])](
            source, folder, int(str(job["threads"])), what.length, budget
        )  # fmt: skip
        send(
            {"evaluations": found.evaluations, "bytes": found.size, "said": found.said, "certifying": found.certifying}
        )
        send({"drop": drop(folder, item_values(found, source), source, budget)})
        example = source.task.example(BATCH, what.length)
        for _line in sys.stdin:
            times = []
            with torch.inference_mode():
                for _ in range(CALLS + 1):
                    begin = time.perf_counter()
                    source.task.forward(found.module, example)
                    times.append(1e3 * (time.perf_counter() - begin))
            send({"ms": float(np.median(times[1:]))})
    except Exception as error:  # whatever a tool raises is the reason that its row shows
        traceback.print_exc()
        send(
            {
                "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
                    :300
                ]
            }
        )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
