"""The float model's outcomes are kept for the very same job, and for no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from autoquant import artifacts
from autoquant.certify import remembered, worker
from tests.jobs import evaluation


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOQUANT_STATE", str(tmp_path / "state"))
    return evaluation(tmp_path)


class Worker:
    """Stands for the fresh process: writes an answer, and counts."""

    def __init__(self) -> None:
        self.calls, self.returncode = 0, 0

    def __call__(self, module: str, job: dict[str, Any], path: Path, **streams: Any) -> Worker:
        self.calls += 1
        values = Path(job["out"]).with_suffix(".npz")
        with open(values, "wb") as file:
            np.savez(file, values=np.arange(3.0), reduced=np.zeros((3, 2)))
        artifacts.write_json(Path(job["out"]), {"metric": float(self.calls), "values": str(values)})
        return self

    def communicate(self) -> tuple[str, str]:
        return "", ""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Worker:
    found = Worker()
    monkeypatch.setattr(worker, "start", found)
    return found


def test_the_same_job_is_not_measured_twice(tmp_path, job, process):
    first = worker.run_job(job, tmp_path / "one", "float32")
    again = worker.run_job(job, tmp_path / "two", "float32")
    assert process.calls == 1 and again["metric"] == first["metric"] and "remembered" not in first
    assert Path(again["values"]) == tmp_path / "two" / "float32.npz" and Path(again["remembered"]).is_file()
    assert np.load(again["values"])["values"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("what", ["weights", "tokenizer", "seed", "threads", "batch_size", "shape", "off", "quantized"])
def test_another_job_is_measured(tmp_path, monkeypatch, job, process, what):
    worker.run_job(job, tmp_path / "one", "float32")
    model = Path(job["model"]["path"])
    if what == "weights":
        weights = load_file(model / "model.safetensors")
        next(iter(weights.values())).view(-1)[-1] += 1e-4  # a single one
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    elif what == "tokenizer":
        (model / "tokenizer_config.json").write_text((model / "tokenizer_config.json").read_text() + " ")
    elif what == "seed":
        job["task"]["seed"] = 1
    elif what == "off":
        monkeypatch.setenv("AUTOQUANT_STATE", "none")
    elif what == "quantized":
        del job["model"]["float"]
    elif what == "shape":
        job["shape"]["seq_len"] = 32
    else:
        job[what] += 1
    worker.run_job(job, tmp_path / "two", "float32")
    assert process.calls == 2


def test_a_checkpoint_is_measured_from_its_files_each_time(tmp_path, job, process):
    del job["model"]["float"]
    for name in ("one", "two"):
        worker.run_job(job, tmp_path / name, "map")
    assert process.calls == 2 and not (tmp_path / "state").exists()


def test_what_is_damaged_or_too_large_is_measured_again(tmp_path, monkeypatch, job, process):
    place = Path((worker.run_job(job, tmp_path / "one", "float32") and remembered.place_of(job)) or "")
    place.write_text("{")
    worker.run_job(job, tmp_path / "two", "float32")
    assert process.calls == 2 and artifacts.read_json(place)["metric"] == 2.0
    place.with_suffix(".npz").unlink()
    worker.run_job(job, tmp_path / "three", "float32")
    assert process.calls == 3
    monkeypatch.setattr(remembered, "LARGEST", 10)
    job["threads"] = 2
    for name in ("four", "five"):
        worker.run_job(job, tmp_path / name, "float32")
    assert process.calls == 5


def test_the_oldest_are_forgotten(tmp_path, monkeypatch, job, process):
    monkeypatch.setattr(remembered, "KEPT", 2)
    for threads in (1, 2, 3):
        worker.run_job({**job, "threads": threads}, tmp_path / "run", "float32")
    kept = {file.name for file in (tmp_path / "state" / remembered.FOLDER).iterdir()}
    assert len(kept) == 4 and remembered.place_of(job).name not in kept
