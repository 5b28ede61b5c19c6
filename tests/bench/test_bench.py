"""`autoquant bench`: every kind of model without data, figures of every shape, a page, and errors that teach."""

from __future__ import annotations

import json
import re
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from autoquant import measuring
from autoquant.bench import run
from autoquant.bench.inputs import inputs_of
from autoquant.bench.processes import Worker
from autoquant.bench.worker import Server
from autoquant.checkpoint import load, write_checkpoint
from autoquant.cli import main
from autoquant.errors import AutoquantError, ModelError, UsageError
from autoquant.models.layers import inspect
from autoquant.models.loading import load_model, load_processor
from autoquant.report import bench_sentences, render_bench_html
from autoquant.values import LayerMap

MODELS = {"bert": "text", "bert_classifier": "text", "llama": "causal-lm", "gpt2": "causal-lm", "vit": "images"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    """An int8 checkpoint with the tokenizer beside it."""
    loaded = load_model(str(tiny.bert(folder / "float")), "AutoModel")
    layers = {
        layer.name: "int8-channel-sym" + ("" if layer.kind == "embedding" else "/a8-token")
        for layer in inspect(loaded.model).layers
    }
    write_checkpoint(loaded.model, LayerMap(layers=layers, base_dtype="float32"), folder / "int8", source=loaded.path)
    return folder / "int8"


@pytest.fixture(scope="module")
def measured(checkpoint: Path) -> dict[str, Any]:
    return measuring.bench(
        checkpoint, batch_sizes=(2, 1), seq_lens=(8, 4), threads=(1,), seconds=0.05, out=checkpoint.parent / "page.html"
    )


def test_every_shape_has_its_figures(measured: dict[str, Any]) -> None:
    shapes = [(one["threads"], one["seq_len"], one["batch_size"]) for one in measured["points"]]
    assert shapes == [(1, 4, 1), (1, 4, 2), (1, 8, 1), (1, 8, 2)]
    for one in measured["points"]:
        assert 0 < one["p50_ms"] <= one["p90_ms"]
        assert one["rounds"] == run.ROUNDS <= one["calls"]
        assert one["tokens_per_s"] == pytest.approx(one["items_per_s"] * one["seq_len"])
        assert one["peak_memory_bytes"] > 0
    small, large = measured["points"][0], measured["points"][-1]
    assert small["peak_memory_bytes"] <= large["peak_memory_bytes"]


def test_every_length_has_its_best_batch_size_or_a_reason(measured: dict[str, Any]) -> None:
    assert [(one["threads"], one["seq_len"]) for one in measured["best"]] == [(1, 4), (1, 8)]
    assert all(one["batch_size"] in (1, 2) or one["reason"] for one in measured["best"])
    assert measured["noisy"] == any(one["reason"] for one in measured["best"])
    assert measured["kind"] == "text" and measured["bytes"] > 0 and measured["hardware"]
    assert json.loads(json.dumps(measured)) == measured


def test_the_page_needs_nothing_else(measured: dict[str, Any], checkpoint: Path) -> None:
    page = (checkpoint.parent / "page.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("<svg viewBox") == 2 and page.count('class="curve"') == 8
    assert all(sentence in page for sentence in bench_sentences(measured))


def test_a_page_says_when_the_machine_was_noisy(measured: dict[str, Any]) -> None:
    quiet = [one | {"noise": 0.01, "noisy": False} for one in measured["points"]]
    told = [one | {"batch_size": 2, "items_per_s": 9.0, "reason": "", "like": [1]} for one in measured["best"]]
    untold = [one | {"batch_size": None, "reason": "rounds of the same shape differ by 12%"} for one in told]
    page = render_bench_html(measured | {"points": quiet, "best": told, "noisy": False})
    assert "batch 2 gives most" in page and "hollow" not in page.split("<main>")[1]
    page = render_bench_html(measured | {"best": untold, "noisy": True})
    assert "cannot be told, because rounds of the same shape differ by 12%" in page


@pytest.mark.parametrize("name", MODELS)
def test_inputs_are_made_up_for_every_kind_of_model(name: str, tmp_path: Path) -> None:
    path = getattr(tiny, name)(tmp_path / name)
    server = Server({"path": str(path), "threads": 1, "trust_remote_code": False})
    assert server.hello()["kind"] == MODELS[name]
    length = None if MODELS[name] == "images" else 8
    assert server.prepare(2, length)["ms"] > 0
    answer = server.round(2, length, 0.0)
    assert len(answer["ms"]) == 1


def test_the_same_shape_has_the_same_inputs(checkpoint: Path) -> None:
    found = inputs_of(load(checkpoint), load_processor(checkpoint))
    assert found.longest == 64
    first, second = found.make(2, 8), found.make(2, 8)
    assert {"input_ids", "attention_mask", "token_type_ids"} == first.keys()
    assert torch.equal(first["input_ids"], second["input_ids"]) and first["input_ids"].shape == (2, 8)


def test_models_whose_inputs_cannot_be_made_up(tmp_path: Path) -> None:
    model = load_model(str(tiny.vit(tmp_path / "vit")), "AutoModelForImageClassification").model
    with pytest.raises(ModelError, match=re.escape("preprocessor_config.json")):
        inputs_of(model, None)
    model.main_input_name = "input_values"
    with pytest.raises(ModelError, match="input_values.*input_ids or pixel_values"):
        inputs_of(model, None)


def test_a_worker_that_fails_says_why(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(AutoquantError, match="loading the checkpoint: There is no checkpoint folder"):
        Worker(tmp_path / "nowhere", 1, tmp_path)
    with Worker(checkpoint, 1, tmp_path) as worker:
        with pytest.raises(ModelError, match="running 1 × 4000 on 1 threads: The model does not run"):
            worker.ask("prepare", batch_size=1, seq_len=4000)
        with pytest.raises(AutoquantError, match="ended when running"):
            worker.ask("prepare", batch_size=1, seq_len=4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--batch-sizes", "1,two"], "whole numbers"),
        (["--batch-sizes", "0"], "from 1 up"),
        (["--threads", "9999"], "Valid: 1 to"),
        (["--seconds", "0"], "positive"),
    ],
)
def test_settings_that_cannot_work(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, options: list[str], named: str
) -> None:
    assert main(["bench", str(checkpoint), *options]) == 2
    assert named in capsys.readouterr().err


def test_lengths_that_do_not_fit() -> None:
    assert run.lengths_for(None, "text", None) == (128,) and run.lengths_for(None, "text", 64) == (64,)
    assert run.lengths_for(None, "images", None) == (None,)
    with pytest.raises(UsageError, match="1 to 64"):
        run.lengths_for((8, 65), "text", 64)
    with pytest.raises(UsageError, match="images"):
        run.lengths_for((8,), "images", None)


def test_a_module_is_refused() -> None:
    with pytest.raises(UsageError, match="folder"):
        measuring.bench(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(("noisy", "code"), [(False, 0), (True, 4)])
def test_what_is_typed_reaches_the_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], noisy: bool, code: int
) -> None:
    called: dict[str, Any] = {}
    monkeypatch.setattr(measuring, "bench", lambda checkpoint, **options: called.update(options) or {"noisy": noisy})
    typed = ["--batch-sizes", "1,8", "--seq-lens", "16", "--threads", "1,2", "--seconds", "1", "--out", "p.html"]
    assert main(["bench", "c", *typed, "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"noisy": noisy}
    assert called == {
        "batch_sizes": (1, 8), "seq_lens": (16,), "threads": (1, 2), "seconds": 1.0, "out": Path("p.html"),
        "quiet": True, "trust_remote_code": False,
    }  # fmt: skip


def test_defaults_are_the_same_in_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    defaults = {name: one.default for name, one in signature(measuring.bench).parameters.items()}
    called: dict[str, Any] = {}
    monkeypatch.setattr(measuring, "bench", lambda checkpoint, **options: called.update(options) or {"noisy": False})
    main(["bench", "c", "--json"])
    capsys.readouterr()
    assert called.pop("quiet") is True, "JSON on stdout, and nothing beside it"
    assert called == {name: defaults[name] for name in called} and {"batch_sizes", "seconds"} <= called.keys()
