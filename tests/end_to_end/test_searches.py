"""The main job on tiny real models, through the command line, with real files, fresh processes and kill −9."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoTokenizer

import autoquant
from autoquant import finals
from autoquant.cli import main
from autoquant.price import latency
from tests import tiny
from tests.jobs import arguments, read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(workplace: Path, model: Path, data: Path) -> Path:
    """A finished search."""
    out = workplace / "run"
    assert main(arguments(model, data, out)) == 0
    return out


def test_the_run_folder_holds_all_that_was_promised(run):
    names = {
        "layer_map.yaml",
        "checkpoint",
        "report.html",
        "report.json",
        "profile.json",
        "price.json",
        "study.journal",
        "settings.yaml",
    }
    assert names <= {path.name for path in run.iterdir()}
    assert (run / "checkpoint" / "tokenizer.json").is_file()
    assert not (run / "candidates").exists()


def test_the_report_has_the_promised_keys(run):
    report = read(run)
    assert report["verdict"] == "PASS"
    assert report["shipped"] == "quantized"
    assert {"name", "float", "quantized", "drop", "upper_bound", "confidence", "n"} <= set(report["metric"])
    for key in ("latency_ms", "bytes", "peak_memory_bytes"):
        assert all(report[key][name] > 0 for name in ("float32", "quantized"))
        half = report[key]["half"]  # where half precision is hopeless here, no process measures it by itself
        assert half > 0 if half is not None else key == "peak_memory_bytes"
    assert {"trials", "full_evaluations", "items_evaluated", "seconds"} <= set(report["search"])
    power = report["power"]
    assert power["n"] == report["metric"]["n"] and power["float_value"] == report["metric"]["float"]
    assert power["known"] and power["needed"]["0.01"] > 0
    assert report["metric"]["use"] == 1
    assert sum(report["schemes"].values()) == len(report["layers"])
    assert report["metric"]["float"] == 1.0
    assert report["metric"]["upper_bound"] <= 0.2


def test_the_bytes_reported_are_the_bytes_on_disk_and_fewer(run):
    report = read(run)
    assert report["bytes"]["quantized"] == sum(f.stat().st_size for f in (run / "checkpoint").glob("*.safetensors"))
    assert report["bytes"]["quantized"] < report["bytes"]["half"] < report["bytes"]["float32"]


def test_the_map_names_what_the_modules_run(run):
    layer_map = yaml.safe_load((run / "layer_map.yaml").read_text())
    loaded = autoquant.load(run / "checkpoint")
    for name, scheme in layer_map["layers"].items():
        module = loaded.get_submodule(name)
        assert getattr(module, "scheme_name", layer_map["base_dtype"]) == scheme
        if scheme.startswith("int8"):
            weight = module.linear.weight if hasattr(module, "linear") else module.weight
            assert weight.dtype == torch.int8
    assert layer_map["verdict"]["status"] == "PASS"


def test_the_certified_metric_is_that_of_the_shipped_checkpoint(run, model, data, capsys):
    assert (
        main(
            [
                "evaluate",
                str(run / "checkpoint"),
                "--task",
                "classification",
                "--data",
                str(data),
                "--json",
                "--threads",
                "1",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    report = read(run)
    assert found["value"] == pytest.approx(report["metric"]["quantized"], abs=1e-9)
    assert found["items"] == report["metric"]["n"]
    assert found["bytes"] == report["bytes"]["quantized"]


def test_stock_transformers_opens_the_checkpoint_in_a_fresh_process(run, data):
    script = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder = sys.argv[1]
batch = AutoTokenizer.from_pretrained(folder)(["one two three", "four five"], padding=True, return_tensors="pt")
with torch.inference_mode():
    print(json.dumps(AutoModelForSequenceClassification.from_pretrained(folder)(**batch).logits.float().tolist()))
assert "autoquant" not in sys.modules
"""
    with open(run / "layer_map.yaml") as file:
        assert yaml.safe_load(file)["format"] == "compressed-tensors"
    done = subprocess.run(
        [sys.executable, "-c", script, str(run / "checkpoint")], capture_output=True, text=True, check=True
    )
    theirs = np.array(json.loads(done.stdout.strip().splitlines()[-1]))
    batch = AutoTokenizer.from_pretrained(run / "checkpoint")(
        ["one two three", "four five"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        ours = autoquant.load(run / "checkpoint")(**batch).logits.float().numpy()
    assert np.abs(ours - theirs).max() <= 0.05 * np.abs(theirs).max()


def test_the_same_seed_finds_the_same_maps(workplace, model, data, monkeypatch):
    """Latencies differ from run to run; with the memory objective, and every base dtype searched, nothing else does."""
    monkeypatch.setattr(latency, "HOPELESS", math.inf)
    monkeypatch.setattr(latency, "EMULATED", math.inf)
    for name in ("once", "again"):
        assert main(arguments(model, data, workplace / name, "--quiet")) == 0
    first, second = read(workplace / "once"), read(workplace / "again")
    assert first["schemes"] == second["schemes"]
    assert first["metric"] == second["metric"]
    assert [c["label"] for c in first["search"]["candidates"]] == [c["label"] for c in second["search"]["candidates"]]


def test_apply_reuses_the_map_on_a_fine_tune(run, workplace, capsys):
    other = tiny.bert_classifier(workplace / "fine-tune", seed=1)
    assert main(["apply", str(other), str(run / "layer_map.yaml"), "--out", str(workplace / "applied")]) == 0
    out = capsys.readouterr().out
    assert "not certified" in out
    with safe_open(workplace / "applied" / "model.safetensors", "pt") as file:
        assert any(file.get_tensor(name).dtype == torch.int8 for name in file.keys())  # noqa: SIM118


def test_another_point_of_the_front_is_certified_without_a_search(run, capsys):
    front = json.loads((run / "front.json").read_text())["maps"]
    assert front == sorted(front, key=lambda c: -c["saving"]) == sorted(front, key=lambda c: -c["drop"])
    assert main(["pick", str(run), "--budget", "0.15", "--quiet"]) in (0, 4)
    picked = read(run / "picks" / "0.15")
    assert picked["budget"]["drop"] == 0.15 and picked["search"]["items_evaluated"] == 0
    assert {c["label"] for c in picked["search"]["candidates"]} == {c["label"] for c in front}
    assert (run / "picks" / "0.15" / "checkpoint" / "model.safetensors").is_file()
    assert read(run)["budget"]["drop"] == 0.2, "the run itself stays as it was"


def test_under_a_cap_the_smallest_drop_is_looked_for(run, model, data, tmp_path, capsys):
    size = read(run)["bytes"]["float32"]
    cap = 0.6 * size / 1e6
    assert main(arguments(model, data, tmp_path / "run", "--max-mb", str(cap), "--trials", "10", "--quiet")) in (
        0,
        3,
        4,
    )
    report = read(tmp_path / "run")
    assert report["bytes"]["quantized"] <= 0.6 * size
    under = [c for c in report["search"]["candidates"] if c["state"] == "complete" and c["within_cap"]]
    proposed = [c for c in under if c["origin"] == "proposed"]
    assert proposed and min(c["divergence"] for c in proposed) <= min(
        c["divergence"] for c in under if c["bytes"] < 0.4 * size
    )
    out = tmp_path / "small"
    assert main(arguments(model, data, out, "--max-mb", "0.000001", "--quiet")) == 2
    assert "smallest has" in capsys.readouterr().err


def test_report_renders_again(run, capsys):
    page = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_text() == page


def test_a_budget_that_the_data_cannot_settle_is_inconclusive(workplace, model, data):
    out = workplace / "inconclusive"
    assert main([*arguments(model, data, out, "--quiet"), "--budget", "0.001", "--trials", "3"]) == 4
    report = read(out)
    assert report["verdict"] == "INCONCLUSIVE"
    assert report["shipped"] in ("half", "float32")  # whichever is better here
    assert "n" in report["metric"]
    with safe_open(out / "checkpoint" / "model.safetensors", "pt") as file:
        kept = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kept == {torch.float32 if report["shipped"] == "float32" else getattr(torch, report["half_dtype"])}


def test_where_nothing_is_faster_than_float32_float32_is_shipped(workplace, model, data, monkeypatch):
    """Bytes do not pay for time, and half precision is no better for being half."""

    def slower(session, plain, served):
        floats = {name for name, one in served.items() if set(one.layers.values()) == {"float32"}} | {"float32"}
        ms = {name: 10.0 if name in floats else 15.0 for name in (*plain, *served)}
        return {"ms": ms, "noise": dict.fromkeys(ms, 0.01)}

    monkeypatch.setattr(finals, "measure_latency", slower)
    out = workplace / "slower"
    assert main([*arguments(model, data, out, "--quiet"), "--objective", "balanced", "--trials", "4"]) == 0
    report = read(out)
    assert (report["verdict"], report["shipped"], report["base_dtype"]) == ("PASS", "float32", "float32")
    assert "does not pay on this machine" in report["sentence"]
    assert any("takes 15" in note or "does not pay" in note for note in report["notes"])
    assert [c["label"] for c in report["search"]["candidates"] if c["shipped"]] == ["float32"]
    assert set(yaml.safe_load((out / "layer_map.yaml").read_text())["layers"].values()) == {"float32"}
    with safe_open(out / "checkpoint" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    page = (out / "report.html").read_text()
    assert "float32, by autoquant" in page and "does not pay on this machine" in page


def test_a_finished_run_resumes_without_work_and_with_the_same_answer(run):
    before = read(run)
    begin = (run / "profile.json").stat().st_mtime_ns
    assert main(["search", "--resume", str(run), "--quiet"]) == 0
    after = read(run)
    assert (run / "profile.json").stat().st_mtime_ns == begin
    assert after["metric"] == before["metric"]
    assert len(after["search"]["candidates"]) == len(before["search"]["candidates"])


def test_resume_refuses_a_model_that_changed(run, workplace, model, data, capsys):
    out = workplace / "stale"
    subprocess.run(["cp", "-r", str(run), str(out)], check=True)
    settings = yaml.safe_load((out / "settings.yaml").read_text())
    settings["model"] = str(tiny.bert_classifier(workplace / "changed", seed=7))
    (out / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert main(["search", "--resume", str(out), "--quiet"]) == 1
    assert "another model" in capsys.readouterr().err


def finished(run: Path) -> list[int]:
    """Numbers of the trials that the journal says are complete."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    if not (run / "study.journal").exists():
        return []
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(run / "study.journal")))
    studies = storage.get_all_studies()
    if not studies:
        return []
    trials = storage.get_all_trials(studies[0]._study_id)
    return [trial.number for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]


def test_kill_9_in_the_middle_of_the_search_loses_nothing(workplace, model, data):
    out = workplace / "killed"
    command = [sys.executable, "-m", "autoquant", *arguments(model, data, out, "--quiet")]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(finished(out)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = finished(out)
    assert len(done) >= 2
    assert not (out / "report.json").exists()
    profile = (out / "profile.json").read_bytes()
    assert main(["search", "--resume", str(out), "--quiet"]) == 0
    assert (out / "profile.json").read_bytes() == profile
    numbers = [c["number"] for c in read(out)["search"]["candidates"]]
    assert set(done) <= set(numbers)
    assert len(numbers) == len(set(numbers))
    maps = [json.dumps(c["label"]) for c in read(out)["search"]["candidates"] if c["state"] == "complete"]
    assert len(maps) == len(set(maps))


def test_a_full_disk_is_named_and_leaves_no_half_file(workplace, model, data):
    """Files may not grow beyond 20 kB: writing the price or the checkpoint fails as on a full disk."""
    out = workplace / "full"
    command = " ".join([sys.executable, "-m", "autoquant", *arguments(model, data, out, "--quiet")])
    done = subprocess.run(["bash", "-c", f"trap '' XFSZ; ulimit -f 20; exec {command}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_a_later_use_of_the_certification_data_is_charged_and_written_down(workplace, model, data, run):
    """As if another search of this model had seen a result of these rows before."""
    out = workplace / "used"
    shutil.copytree(run, out)
    shutil.rmtree(out / "measurements")  # they are of the other folder's candidates
    ledger = out / "certifications.jsonl"
    (line,) = ledger.read_text().splitlines()
    earlier = {**json.loads(line), "what": ["another map"], "date": "2020-01-01T00:00:00Z", "label": "long ago"}
    ledger.write_text(json.dumps(earlier) + "\n")
    assert main(["search", "--resume", str(out), "--quiet"]) in (0, 4)
    report, kept = read(out), yaml.safe_load((out / "layer_map.yaml").read_text())
    assert report["metric"]["use"] == 2 and report["metric"]["confidence"] == pytest.approx(0.975)
    assert kept["verdict"]["use"] == 2 and kept["verdict"]["confidence"] == pytest.approx(0.975)
    assert any("long ago" in note and "97.5%" in note for note in report["notes"])
    assert main(["search", "--resume", str(out), "--quiet"]) in (0, 4)
    assert read(out)["metric"]["use"] == 2, "the same frozen maps are no new use"
