"""`autoquant certify`: any checkpoint on any data, once and for as long as data come in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from autoquant import artifacts, comparison, watching
from autoquant.certify import serving, worker
from autoquant.checkpoint import write_checkpoint
from autoquant.cli import main
from autoquant.models.layers import inspect
from autoquant.models.loading import load_model
from autoquant.values import LayerMap
from tests import tiny

COUNT = 500


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert_classifier(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def quantized(model: Path) -> Path:
    """What a search would have written of it."""
    loaded = load_model(str(model), "AutoModelForSequenceClassification")
    layers = {layer.name: "int8-channel-sym" for layer in inspect(loaded.model).layers}
    found_on = {
        "task": {
            "task": "classification",
            "metric": "accuracy",
            "columns": {"text": "words", "label": "y"},
            "data": "old.jsonl",
        },
        "budget": {"drop": 0.2, "relative": False, "confidence": 0.9},
    }
    layer_map = LayerMap(layers=layers, model={"name": str(model)}, found_on=found_on)
    write_checkpoint(loaded.model, layer_map, model.parent / "quantized", source=loaded.path)
    return model.parent / "quantized"


@pytest.fixture(scope="module")
def other(model: Path) -> Path:
    """A model that is another one, which no budget allows."""
    return tiny.bert_classifier(model.parent / "other", seed=5)


@pytest.fixture(scope="module")
def rows(model: Path) -> list[dict[str, Any]]:
    """Texts with the labels that the float model itself gives: its accuracy is 1."""
    texts = tiny.texts(COUNT)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.inference_mode():
        logits = network(**AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")).logits
    return [{"words": text, "y": int(y), "page": place // 5} for place, (text, y) in enumerate(
        zip(texts, logits.argmax(1), strict=True))]  # fmt: skip


@pytest.fixture(scope="module")
def data(model: Path, rows: list[dict[str, Any]]) -> Path:
    return write(model.parent / "new.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class JudgeHere:
    """A `Judge` that needs no process."""

    def __init__(self, job: dict[str, Any], folder: Path, name: str) -> None:
        self._job, self._out = job, folder / f"{name}.npz"
        self._processor = serving.load_processor(job["processor"])
        self._model = worker.open_model(job["model"], job["task"]["task"])

    def values(self, data: Path, reference: Path | None) -> tuple[np.ndarray, Path]:
        asked = {"data": str(data), "out": str(self._out), "reference": reference and str(reference)}
        assert serving._judge(self._model, self._processor, self._job, asked) == {}
        with np.load(self._out) as file:
            return file["values"], self._out

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in this process: a fresh one takes seconds to import torch."""

    def run_job(job: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
        return worker.JOBS[job["kind"]]({**job, "out": str(folder / f"{name}.json"), "name": name})

    monkeypatch.setattr(comparison, "run_job", run_job)
    monkeypatch.setattr(watching, "Judge", JudgeHere)
    monkeypatch.setattr(watching, "PAUSE", 0.01)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["certify", *(str(argument) for argument in arguments)])
    said = capsys.readouterr()
    return code, said.out.strip(), said.err


@pytest.mark.usefixtures("here")
class TestOnce:
    def test_a_good_checkpoint_passes_by_its_own_settings(self, capsys, tmp_path, quantized, model, data):
        code, line, _ = run(capsys, quantized, "--data", data, "--json", tmp_path / "found.json", "-q")
        assert code == 0 and len(line.splitlines()) == 1
        assert line.startswith("PASS: accuracy") and "budget 0.2" in line and "90% confidence" in line
        found = artifacts.read_json(tmp_path / "found.json")
        assert found["verdict"] == "PASS" and found["metric"]["n"] == COUNT and found["against"] == str(model)
        assert found["metric"]["float"] == 1.0 and found["metric"]["upper_bound"] <= 0.2
        assert found["use"] == {"number": 1, "earlier": []}

    def test_a_bad_one_fails_with_its_exit_code(self, capsys, other, model, data):
        code, line, _ = run(capsys, other, "--against", model, "--data", data, "--task", "classification",
                            "--columns", "text=words", "--columns", "label=y", "-q")  # fmt: skip
        assert code == 3 and line.startswith("FAIL: accuracy drops by") and "by more than" in line

    def test_few_items_are_inconclusive(self, capsys, quantized, data):
        code, line, _ = run(capsys, quantized, "--data", data, "--sizes", "certification=40", "--budget", "0.01", "-q")
        assert code == 4 and line.startswith("INCONCLUSIVE") and "would settle it" in line and "40 texts" in line

    def test_without_confidence_it_says_so(self, capsys, quantized, data):
        code, line, error = run(capsys, quantized, "--data", data, "--confidence", "none")
        assert code == 0 and "point estimate only" in line and "without confidence" in error

    def test_clusters_are_counted(self, capsys, quantized, data):
        code, line, _ = run(capsys, quantized, "--data", data, "--cluster", "page", "--json", "-", "-q")
        found = json.loads(line)
        assert code == 0 and found["metric"]["clusters"] == COUNT // 5 and "100 clusters" in found["metric"]["method"]

    def test_without_labels_it_is_compared_with_the_float_model(self, capsys, other, model, data):
        code, line, _ = run(capsys, other, "--against", model, "--data", data, "--task", "fidelity",
                            "--columns", "text=words", "-q")  # fmt: skip
        assert code == 3 and "agreement" in line

    def test_a_second_look_at_the_data_is_charged(self, capsys, monkeypatch, tmp_path, quantized, other, model, data):
        monkeypatch.setenv("AUTOQUANT_STATE", str(tmp_path))
        task = ["--task", "classification", "--columns", "text=words", "--columns", "label=y", "--confidence", "0.9"]
        for checkpoint, use, level in ((other, 1, 0.9), (quantized, 2, 0.95), (other, 1, 0.9)):
            _, line, error = run(capsys, checkpoint, "--against", model, "--data", data, *task, "--json", "-")
            found = json.loads(line)
            assert found["use"]["number"] == use and found["metric"]["confidence"] == pytest.approx(level)
            assert ("95% confidence instead of 90%" in error) == (use == 2)

    def test_data_that_the_search_knew_are_warned_of(self, capsys, tmp_path, quantized, data):
        shutil.copy(data, tmp_path / "old.jsonl")
        _, _, error = run(capsys, quantized, "--data", tmp_path / "old.jsonl")
        assert "no data that the search never saw" in error

    def test_a_checkpoint_of_another_tool_is_opened_by_transformers(self, capsys, monkeypatch, tmp_path, model, data):
        shutil.copytree(model, tmp_path / "foreign")
        config = json.loads((model / "config.json").read_text())
        (tmp_path / "foreign" / "config.json").write_text(
            json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
        )
        opened = []

        def stock(folder: str, auto_class: str, **options: Any) -> torch.nn.Module:
            opened.append(auto_class)
            return load_model(str(model), auto_class).model

        monkeypatch.setattr(worker, "open_stock", stock)
        code, line, _ = run(capsys, tmp_path / "foreign", "--against", model, "--data", data, "--columns", "text=words",
                            "--columns", "label=y", "--budget", "0.05", "-q")  # fmt: skip
        assert code == 0 and opened == ["AutoModelForSequenceClassification"] and "does not drop" in line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--budget", "2"], "between 0 and 1"),
        (["--once"], "--watch"),
        (["--watch", "x", "--data", "y"], "leave --data out"),
        (["--watch", "x", "--cluster", "y"], "--cluster"),
        (["--task", "clasification"], "classification"),
        (["--confidence", "high"], "none"),
    ],
)
def test_wrong_requests_are_answered_with_what_is_right(capsys, quantized, options, named):
    code, _, error = run(capsys, quantized, *options, "-q")
    assert code == 2 and named in error and "Traceback" not in error


def test_what_it_was_made_from_must_be_known(capsys, model, data):
    code, _, error = run(capsys, model, "--data", data)
    assert code == 2 and "--against" in error


@pytest.mark.usefixtures("here")
class TestWatch:
    COLUMNS = ("--columns", "text=words", "--columns", "label=y", "--task", "classification", "--budget", "0.05", "-q")

    def test_the_alarm_is_raised_and_stays(self, capsys, tmp_path, other, model, data):
        asked = (
            other,
            "--against",
            model,
            "--watch",
            data,
            "--state",
            tmp_path / "state.json",
            "--once",
            *self.COLUMNS,
        )
        code, line, _ = run(capsys, *asked, "--json", tmp_path / "found.json")
        found = artifacts.read_json(tmp_path / "found.json")
        assert code == 3 and line.startswith("ALARM at item") and found["alarm"] <= found["metric"]["n"]
        assert run(capsys, *asked)[0] == 3

    def test_a_good_model_passes_at_the_end(self, capsys, quantized, data):
        code, line, _ = run(capsys, quantized, "--watch", data, "--once", *self.COLUMNS)
        assert code == 0 and line.startswith("within the budget of 0.05") and f"{COUNT} texts" in line

    def test_lines_that_are_no_items_are_skipped_and_counted(self, capsys, tmp_path, quantized, rows):
        bad = ['{"words": "ba', "[1]", '{"words": "", "y": 0}', '{"words": "ba be", "y": "perhaps"}', "17", '{"y": 1}']
        lines = [json.dumps(row) for row in rows[:200]]
        for place, one in enumerate(bad):
            lines.insert(30 * place, one)
        path = tmp_path / "log.jsonl"
        path.write_text("\n".join(lines) + '\n{"words": "half a li')
        code, line, error = run(capsys, quantized, "--watch", path, "--once", *self.COLUMNS[:-1])
        assert code in (0, 4) and "200 texts, 6 lines skipped" in line
        assert error.count("skipped:") == watching.SHOWN

    def test_no_item_at_all_is_an_error(self, capsys, tmp_path, quantized):
        path = tmp_path / "log.jsonl"
        path.write_text('{"other": 1}\n')
        code, _, error = run(capsys, quantized, "--watch", path, "--once", *self.COLUMNS)
        assert code == 2 and "no column" in error

    def test_in_parts_it_says_the_same_as_at_once(self, capsys, monkeypatch, tmp_path, quantized, rows):
        monkeypatch.setattr(watching, "CHUNK", 64)
        whole = write(tmp_path / "whole.jsonl", rows)
        _, line, _ = run(capsys, quantized, "--watch", whole, "--once", "--state", tmp_path / "a.json", *self.COLUMNS)
        parts = tmp_path / "parts.jsonl"
        for place in range(0, COUNT, 130):
            with open(parts, "a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows[place : place + 130])
            _, last, _ = run(
                capsys, quantized, "--watch", parts, "--once", "--state", tmp_path / "b.json", *self.COLUMNS
            )
        assert last == line

    def test_the_state_of_something_else_is_refused(self, capsys, tmp_path, quantized, data):
        asked = (quantized, "--watch", data, "--once", "--state", tmp_path / "state.json")
        run(capsys, *asked, *self.COLUMNS)
        code, _, error = run(capsys, *asked, *self.COLUMNS, "--budget", "0.2")
        assert code == 1 and "another budget" in error

    def test_items_without_labels(self, capsys, other, model, data):
        code, line, _ = run(capsys, other, "--against", model, "--watch", data, "--once", "--task", "fidelity",
                            "--columns", "text=words", "-q")  # fmt: skip
        assert code == 3 and "agreement 1.0" in line

    @pytest.mark.parametrize(
        ("more", "named"),
        [(["--task", "sts"], "fidelity"), (["--confidence", "none"], "confidence")],
    )
    def test_what_cannot_be_watched_is_said(self, capsys, quantized, model, data, more, named):
        code, _, error = run(capsys, quantized, "--against", model, "--watch", data, "--once", "-q", *more)
        assert code == 2 and named in error


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.mark.slow
def test_in_fresh_processes_as_a_pipeline_would_run_it(tmp_path, quantized, data):
    line = [sys.executable, "-m", "autoquant", "certify", str(quantized), "--data", str(data), "--threads", "1"]
    done = subprocess.run(
        [*line, "--json", str(tmp_path / "a.json")], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PASS: ") and done.stdout.count("\n") == 1
    assert artifacts.read_json(tmp_path / "a.json")["metric"]["n"] == COUNT


@pytest.mark.slow
def test_a_watch_that_was_killed_goes_on_over_a_rotation(tmp_path, quantized, rows):
    """kill −9 in the middle, the log rotated while nobody was looking: every item is counted once."""
    log, state = write(tmp_path / "log.jsonl", rows[:300]), tmp_path / "state.json"
    line = [sys.executable, "-m", "autoquant", "certify", str(quantized), "--watch", str(log), "--state", str(state),
            "--threads", "1", "--budget", "0.01"]  # fmt: skip
    process = subprocess.Popen(line, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < artifacts.read_json(state)["sequence"]["n"] <= 300
    log.rename(tmp_path / "log.jsonl.1")
    write(log, rows[300:])
    done = subprocess.run([*line, "--once", "--json", "-"], env=environment(), capture_output=True, text=True)
    assert done.returncode in (0, 4), done.stderr
    assert json.loads(done.stdout)["metric"]["n"] == COUNT


def watching_stdin(checkpoint: Path, model: Path, found: Path) -> subprocess.Popen[bytes]:
    """`… | autoquant certify CHECKPOINT --watch -`, without labels."""
    line = [sys.executable, "-m", "autoquant", "certify", str(checkpoint), "--against", str(model), "--watch", "-", "--task",
            "fidelity", "--columns", "text=words", "--budget", "0.05", "--threads", "1", "--json", str(found)]  # fmt: skip
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.mark.slow
def test_lines_on_stdin_raise_the_alarm_while_more_may_come(tmp_path, other, model, rows):
    """The writer never closes the pipe, as `tail -f` does not: the alarm ends the process all the same."""
    process = watching_stdin(other, model, tmp_path / "found.json")
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    lines = [json.dumps({"words": row["words"]}) + "\n" for row in rows]
    text = "".join([*lines[:3], "no JSON\n", *lines[3:]]).encode()
    process.stdin.write(text[:1000])  # cut in the middle of a line
    process.stdin.flush()
    time.sleep(1)
    process.stdin.write(text[1000:])
    process.stdin.flush()
    code, said, error = process.wait(300), process.stdout.read().decode(), process.stderr.read().decode()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    assert code == 3, error
    found = artifacts.read_json(tmp_path / "found.json")
    assert said.startswith("ALARM at item") and said.count("\n") == 1
    assert found["verdict"] == "FAIL" and found["alarm"] <= found["metric"]["n"] <= COUNT
    assert found["watched"] == "-" and found["state"] is None
    assert "skipped: not a JSON object" in error


@pytest.mark.slow
def test_stdin_is_judged_to_its_end(tmp_path, quantized, model, rows):
    process = watching_stdin(quantized, model, tmp_path / "found.json")
    text = "".join(json.dumps({"words": row["words"]}) + "\n" for row in rows)
    said, error = process.communicate(text.rstrip("\n").encode(), timeout=300)  # the last line has no end
    assert process.returncode == 0, error.decode()
    assert said.startswith(f"within the budget of 0.05; {COUNT} items: agreement 1.0000".encode())
    assert artifacts.read_json(tmp_path / "found.json")["metric"]["n"] == COUNT


def test_the_layer_map_that_it_reads_is_the_one_that_was_written(quantized):
    """Or its defaults would silently be others."""
    found = yaml.safe_load((quantized / "layer_map.yaml").read_text())
    assert found["found_on"]["budget"]["drop"] == 0.2 and found["found_on"]["task"]["columns"]["text"] == "words"
