"""Bad input: one clear message, the right exit code, nothing written; and what the help promises."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import autoquant.commands.search as search_command
from autoquant import api, measuring
from autoquant.cli import main
from autoquant.settings import Settings


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert_classifier(tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    rows = [f"{text},{number % 2}" for number, text in enumerate(tiny.texts(200))]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("budget", ["-0.1", "1.5", "nan"])
def test_a_budget_outside_0_to_1_is_refused(capsys, budget, tmp_path):
    code, error = run(capsys, "search", "--budget", budget, "--out", tmp_path / "run")
    assert code == 2
    assert "between 0 and 1" in error
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_nowhere(capsys, tmp_path, pairs):
    code, error = run(
        capsys, "search", tmp_path / "nowhere", "--task", "sts", "--data", pairs, "--out", tmp_path / "run"
    )
    assert code == 2
    assert "nowhere" in error


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--task", "clasification"], "classification"),
        (["--task", "classification", "--space", "int8_fp61"], "int8_fp16"),
        (["--task", "classification", "--objective", "speed"], "latency"),
        (["--task", "classification", "--strategy", "surogate"], "surrogate"),
        (["--task", "classification", "--strategy", "exhaustive"], "surrogate"),
        (["--task", "classification", "--max-mb", "-1"], "positive"),
        (["--task", "classification", "--columns", "text=sentence"], "label"),
        (["--task", "classification", "--columns", "text"], "ROLE=NAME"),
        (["--task", "classification", "--sizes", "search=many"], "whole number"),
        (["--task", "classification", "--confidence", "high"], "none"),
        (["--task", "classification", "--device", "cuda"], "GPU"),
        (["--task", "classification", "--trials", "0"], "at least 1"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_wrong_words_are_answered_with_the_right_ones(capsys, classifier, pairs, tmp_path, options, named):
    code, error = run(capsys, "search", classifier, "--data", pairs, "--out", tmp_path / "run", "--quiet", *options)
    assert code == 2, error
    assert named in error
    assert "Traceback" not in error


def test_a_folder_that_is_not_empty_is_left_alone(capsys, classifier, pairs, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    code, error = run(capsys, "search", classifier, "--task", "classification", "--data", pairs, "--out", tmp_path)
    assert code == 2
    assert "--resume" in error
    assert os.listdir(tmp_path) == ["precious.txt"]


def test_a_folder_without_a_finished_search_has_no_front_to_pick_from(capsys, tmp_path):
    code, error = run(capsys, "pick", tmp_path, "--budget", "0.01")
    assert code == 2 and "no run folder" in error
    (tmp_path / "settings.yaml").write_text("schema_version: 1\nmodel: default\n")
    code, error = run(capsys, "pick", tmp_path, "--budget", "0.01")
    assert code == 2 and "--resume" in error
    code, error = run(capsys, "pick", tmp_path, "--budget", "7")
    assert code == 2 and "between 0 and 1" in error
    assert not (tmp_path / "picks").exists()


def test_empty_data_and_too_little_data(capsys, classifier, tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text("text,label\n")
    few = tmp_path / "few.csv"
    few.write_text("text,label\n" + "\n".join(f"{text},1" for text in tiny.texts(10)))
    for number, data in enumerate((empty, few)):
        code, error = run(
            capsys,
            "search",
            classifier,
            "--task",
            "classification",
            "--data",
            data,
            "--out",
            tmp_path / f"run{number}",
            "-q",
        )
        assert code == 2, error
        assert data.name in error or "The data has 10 texts" in error
        assert not (tmp_path / f"run{number}").exists()


def test_a_model_with_nan_in_its_weights_is_named(capsys, classifier, pairs, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in classifier.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    name = next(key for key in tensors if key.endswith("query.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    code, error = run(
        capsys, "search", broken, "--task", "classification", "--data", pairs, "--out", tmp_path / "run", "-q"
    )
    assert code == 2
    assert "query.weight" in error


def test_a_map_of_another_architecture_says_what_does_not_match(capsys, classifier, tmp_path):
    other = tmp_path / "layer_map.yaml"
    other.write_text("base_dtype: float32\nlayers:\n  transformer.h.0.attn.c_attn: int8-channel-sym\n")
    code, error = run(capsys, "apply", classifier, other, "--out", tmp_path / "out")
    assert code == 2
    assert "transformer.h.0.attn.c_attn" in error


def test_an_unknown_scheme_in_a_map_names_the_nearest(capsys, classifier, tmp_path):
    path = tmp_path / "layer_map.yaml"
    path.write_text("layers:\n  classifier: int8-chanel-sym\n")
    code, error = run(capsys, "apply", classifier, path, "--out", tmp_path / "out")
    assert code == 2
    assert "'int8-channel-sym'" in error


def test_resume_of_no_run(capsys, tmp_path):
    code, error = run(capsys, "search", "--resume", tmp_path)
    assert code == 2
    assert "no run folder" in error


def test_report_of_an_unfinished_run(capsys, tmp_path):
    code, error = run(capsys, "report", tmp_path)
    assert code == 2
    assert "--resume" in error


def test_a_misspelt_command(capsys):
    code, _ = run(capsys, "serch")
    assert code == 2


@pytest.mark.parametrize("what", ["schemes", "tasks", "spaces", "runtimes", "exports", "strategies"])
def test_list_prints_every_name_and_json(capsys, what):
    assert main(["list", what]) == 0
    text = capsys.readouterr().out
    assert main(["list", what, "--json"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert names
    assert all(name in text for name in names)


def test_list_of_something_else(capsys):
    code, error = run(capsys, "list", "models")
    assert code == 2
    assert "schemes" in error


@pytest.mark.parametrize(
    "command", ["search", "profile", "apply", "evaluate", "bench", "certify", "report", "pick", "list", "worker"]
)
def test_every_command_has_help_with_an_example(capsys, command):
    assert main([command, "--help"]) == 0
    assert f"autoquant {command}" in capsys.readouterr().out


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple, dict[str, Any]]]:
    """What the command line asks of `autoquant.api`: name, arguments, options."""
    calls: list[tuple[str, tuple, dict[str, Any]]] = []
    for name in ("search", "resume", "profile"):

        def record(*args: Any, _name: str = name, **options: Any) -> SimpleNamespace:
            calls.append((_name, args, options))
            return SimpleNamespace(exit_code=0)

        monkeypatch.setattr(api, name, record)
    monkeypatch.setattr(search_command, "show", lambda result, as_json: None)
    return calls


@pytest.mark.parametrize("command", ["search", "profile"])
def test_what_is_not_typed_is_the_default_of_the_settings(called, command):
    assert main([command]) == 0
    ((name, args, options),) = called
    assert name == command and args == ("default",)
    assert options.pop("out") is None and options.pop("quiet") is False
    assert options == {name: Settings.__dataclass_fields__[name].default for name in options}
    if command == "search":
        assert options.keys() | {"model", "notes", "study"} == Settings.__dataclass_fields__.keys()


def test_what_is_typed_reaches_the_search(called):
    typed = [
        "search", "m", "--task", "sts", "--data", "d.csv", "--budget", "0.02", "--relative", "--confidence", "none",
        "--objective", "memory", "--space", "s", "--strategy", "tpe", "--runtime", "r", "--device", "cuda", "--trials", "3",
        "--max-mb", "9.5", "--max-ms", "8", "--cold", "--no-race",
        "--max-minutes", "1.5", "--rungs", "1", "--test-data", "t.csv", "--columns", "text=1", "--columns", "label=y",
        "--sizes", "search=5", "--metric", "spearman", "--max-length", "64", "--batch-size", "2", "--seq-len", "9",
        "--eval-batch-size", "4", "--threads", "1", "--fuse", "--no-grad", "--no-smooth", "--seed", "7",
        "--out", "o", "--revision", "main",
        "--trust-remote-code", "-q", "--json", "--workers", "2", "--storage", "sqlite:///s",
    ]  # fmt: skip
    assert main(typed) == 0
    expected = {
        "task": "sts", "data": "d.csv", "budget": 0.02, "relative": True, "confidence": None, "objective": "memory",
        "max_mb": 9.5, "max_ms": 8.0, "cold": True, "race": False,
        "space": "s", "strategy": "tpe", "runtime": "r", "device": "cuda", "trials": 3, "max_minutes": 1.5, "rungs": 1,
        "test_data": "t.csv", "columns": {"text": 1, "label": "y"}, "sizes": {"search": 5}, "metric": "spearman",
        "max_length": 64, "batch_size": 2, "seq_len": 9, "eval_batch_size": 4, "threads": 1, "fuse": True,
        "gradient": False, "smooth": False,
        "seed": 7, "out": Path("o"), "revision": "main", "trust_remote_code": True, "quiet": True,
        "workers": 2, "storage": "sqlite:///s",
    }  # fmt: skip
    assert called == [("search", ("m",), expected)]


def test_a_resumed_run_takes_more_trials_and_nothing_else(called, capsys):
    assert main(["search", "--resume", "run", "--trials", "3", "-q"]) == 0
    assert called == [("resume", (Path("run"),), {"quiet": True, "trials": 3})]
    assert main(["search", "--resume", "run", "--workers", "2", "--storage", "sqlite:///s"]) == 0
    assert called[1:] == [("resume", (Path("run"),), {"quiet": False, "workers": 2, "storage": "sqlite:///s"})]
    code, error = run(capsys, "search", "--resume", "run", "--eval-batch-size", "3")
    assert code == 2 and "--eval-batch-size" in error


def test_what_is_typed_reaches_an_evaluation(monkeypatch, capsys):
    found = {}
    monkeypatch.setattr(
        measuring, "evaluate", lambda checkpoint, **options: found.update(options, checkpoint=checkpoint) or {}
    )
    assert main(["evaluate", "c", "--split", "search", "--columns", "text=q", "--json"]) == 0
    assert found["checkpoint"] == "c" and found["split"] == "search" and found["columns"] == {"text": "q"}
    assert found["quiet"] is True, "JSON on stdout, and nothing beside it"
