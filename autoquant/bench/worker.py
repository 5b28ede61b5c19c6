"""One number of threads in a process of its own: `python -m autoquant.bench.worker job.json`.

It loads the checkpoint as a user does, says what it reads, and then answers each line of JSON on standard input with one on
what was standard output when it began; whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autoquant import artifacts
from autoquant.bench.inputs import RandomInputs, inputs_of
from autoquant.errors import AutoquantError, ModelError
from autoquant.exports import load
from autoquant.memory import peak, reset_peak
from autoquant.models.loading import load_processor
from autoquant.runtimes import TorchRuntime

SHORT_MS = 100.0
"""Calls shorter than this are preceded by one that is not timed: it wakes the threads and fills the caches again."""


class Server:
    """A model and the shapes that it was asked to run."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch.set_num_threads(job["threads"])
        self._before = reset_peak()
        begin = time.perf_counter()
        self.model = load(job["path"], trust_remote_code=job["trust_remote_code"])
        self.load_seconds = time.perf_counter() - begin
        processor = load_processor(job["path"], trust_remote_code=job["trust_remote_code"])
        self.inputs: RandomInputs = inputs_of(self.model, processor)
        self.calls: dict[tuple[int, int | None], Callable[[], None]] = {}
        self.typical: dict[tuple[int, int | None], float] = {}

    def hello(self) -> dict[str, Any]:
        return {
            "kind": self.inputs.kind,
            "longest": self.inputs.longest,
            "hardware": TorchRuntime().description(),
            "load_seconds": self.load_seconds,
        }

    def prepare(self, batch_size: int, seq_len: int | None) -> dict[str, Any]:
        """Run a shape three times, which compiles what is compiled, and measure memory.

        Returns:
            ms: of the third call; peak_bytes: the most that this process has held since before the model was loaded.

        Raises:
            ModelError: the model does not take such inputs.
        """
        arguments = self.inputs.make(batch_size, seq_len)

        def call() -> None:
            with torch.inference_mode():
                self.model(**arguments)

        try:
            call()
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a model's code raises what it likes when inputs do not suit it
            first = (str(error).strip().splitlines() or ["no message"])[0]
            raise ModelError(f"The model does not run on random inputs: {type(error).__name__}: {first}") from error
        call()
        key = (batch_size, seq_len)
        self.calls[key], self.typical[key] = call, _timed(call)
        return {"ms": self.typical[key], "peak_bytes": max(0, peak() - self._before)}

    def round(self, batch_size: int, seq_len: int | None, seconds: float) -> dict[str, Any]:
        """Calls of one shape for about this long, at least one.

        Returns:
            ms: of each call; waited: share of the time in which this thread was ready and had no CPU, or None.
        """
        key = (batch_size, seq_len)
        call = self.calls[key]
        if self.typical[key] < SHORT_MS:
            call()
        waiting, begin = _waiting(), time.perf_counter()
        times = [_timed(call)]
        while time.perf_counter() - begin < seconds:
            times.append(_timed(call))
        wall, after = time.perf_counter() - begin, _waiting()
        waited = None if waiting is None or after is None else (after - waiting) / 1e9 / wall
        return {"ms": times, "waited": waited}


def _timed(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def _waiting() -> int | None:
    """Nanoseconds that the main thread has stood in the scheduler's queue; None where the kernel does not count them."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None


def main(path: str) -> int:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=channel, flush=True)

    try:
        server = Server(artifacts.read_json(Path(path)))
        send(server.hello())
        for line in sys.stdin:
            request = json.loads(line)
            send(getattr(server, request.pop("do"))(**request))
    except AutoquantError as error:
        send({"error": str(error), "usage": error.exit_code == 2})
        return error.exit_code
    except (MemoryError, torch.OutOfMemoryError) as error:
        send({"error": f"out of memory ({error})", "usage": False})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
