"""The workers as their parent sees them: one process a number of threads, asked on a pipe, ended when done."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import PIPE
from types import TracebackType
from typing import Any

from autoquant.errors import AutoquantError, ModelError
from autoquant.processes import last_words, start, stop


class Worker:
    """A process of `worker.py`.

    Args:
        folder: where the job is written.
        environment: variables beside those of this process.

    Attributes:
        hello: what it said when the checkpoint was loaded.

    Raises:
        AutoquantError: the checkpoint cannot be loaded, or the process ended.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        folder: Path,
        *,
        trust_remote_code: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.threads = threads
        job = {"path": str(path), "threads": threads, "trust_remote_code": trust_remote_code}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `stop`
        self._process = start(
            "autoquant.bench.worker", job, folder / f"threads-{threads}.json",
            environment={"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **(environment or {})},
            stdin=PIPE, stdout=PIPE, stderr=self._errors,
        )  # fmt: skip
        try:
            self.hello = self._answer("loading the checkpoint")
        except BaseException:
            self.stop()
            raise

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """The answer to one request; the process ends with the first that fails."""
        assert self._process.stdin is not None
        shape = " × ".join(str(more[key]) for key in ("batch_size", "seq_len") if more.get(key))
        with contextlib.suppress(BrokenPipeError):  # it has ended; why is found below
            print(json.dumps({"do": do, **more}), file=self._process.stdin, flush=True)
        return self._answer(f"running {shape} on {self.threads} threads")

    def _answer(self, doing: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer = json.loads(line)
            if "error" not in answer:
                return answer
            raise (ModelError if answer["usage"] else AutoquantError)(f"Failed when {doing}: {answer['error']}")
        code = self._process.wait()
        if code == -signal.SIGKILL:
            raise AutoquantError(
                f"The process was killed when {doing}: most likely there is not enough memory for it. "
                "Measure less: --batch-sizes, --seq-lens."
            )
        self._errors.seek(0)
        raise AutoquantError(f"The process ended when {doing}: {last_words(self._errors.read(), code)}")

    def stop(self) -> None:
        stop(self._process, self._errors)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
