"""A model that judges chunk after chunk of data in a process of its own: `python -m autoquant.certify.serving job.json`.

The parent writes one JSON line a chunk, `{"data": FILE, "out": FILE, "reference": FILE or null}`, and reads one back:
`{}` when the item values are in `out` (npz), or `{"error": …}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import torch

from autoquant import artifacts
from autoquant.certify.worker import open_model
from autoquant.errors import AutoquantError
from autoquant.evaluation import evaluate_split, saved_rows, saved_values
from autoquant.models.loading import load_processor
from autoquant.processes import exit_code_of, last_words, start, stop
from autoquant.tasks import from_spec


class Judge:
    """A model in a process of its own.

    Args:
        job: as of `certify.worker.evaluate_job`: task (its data are replaced by each chunk's), processor, model, threads,
            batch_size.
        folder: for the files that go to and fro.
        name: what the model is called in messages.
    """

    def __init__(self, job: dict[str, Any], folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._errors = open(folder / f"{name}.log", "w+", encoding="utf8", errors="replace")  # noqa: SIM115  closed with the process
        self._process = start(
            "autoquant.certify.serving", job, folder / f"{name}.job.json",
            stdin=PIPE, stdout=PIPE, stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for the parent, which ends this process when its state is saved
        )  # fmt: skip

    def values(self, data: Path, reference: Path | None) -> tuple[np.ndarray, Path]:
        """Item values of the rows in `data`, and the file that holds them.

        Args:
            reference: the file of the float model, for tasks that compare with it.

        Raises:
            AutoquantError: the model cannot be opened, failed on these rows, or its process died.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        out = self._folder / f"{self._name}.npz"
        asked = {"data": str(data), "out": str(out), "reference": None if reference is None else str(reference)}
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise AutoquantError(f"The process of {self._name} ended: {self._last_words()}")
        if error := json.loads(line).get("error"):
            raise AutoquantError(f"{self._name}: {error}")
        return saved_values(out), out

    def close(self) -> None:
        """End the process."""
        stop(self._process, self._errors)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        return last_words(self._errors.read(), code)


def serve(job: dict[str, Any], answers: Any) -> None:
    """Judge the chunks that stdin names until it ends."""
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    processor = load_processor(job["processor"], trust_remote_code=job["trust_remote_code"])
    model = open_model(job["model"], job["task"]["task"])
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(json.dumps(_judge(model, processor, job, asked)) + "\n")
        answers.flush()


def _judge(model: torch.nn.Module, processor: Any, job: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    try:
        task = from_spec({**job["task"], "data": asked["data"], "fingerprint": None}, processor)
        reference = saved_rows(asked["reference"]) if asked["reference"] else None
        found = evaluate_split(
            model, task, "certification", batch_size=job["batch_size"], reference=reference,
            is_reference=asked["reference"] is None,
        )  # fmt: skip
        found.save(Path(asked["out"]))
    except AutoquantError as error:
        return {"error": str(error)}
    return {}


def main(path: str) -> int:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not end up among the answers
    return exit_code_of(lambda: serve(artifacts.read_json(Path(path)), answers))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
