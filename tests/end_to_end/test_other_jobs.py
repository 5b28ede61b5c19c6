"""Other jobs than the main one: other runtimes, a model that compressed-tensors cannot hold, a module of one's own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml

import autoquant
from autoquant.cli import main
from tests import tiny
from tests.jobs import arguments, read

pytestmark = pytest.mark.slow


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="the extra [openvino] is not installed")
def test_the_main_job_on_another_runtime(model: Path, data: Path, tmp_path: Path) -> None:
    out, ir = tmp_path / "run", tmp_path / "ir"
    assert main(arguments(model, data, out, "--runtime", "openvino", "--quiet")) == 0
    price = json.loads((out / "price.json").read_text())
    assert price["runtime"] == "openvino" and "OpenVINO" in price["hardware"]
    assert main(["export", str(out / "checkpoint"), "--format", "openvino", "--out", str(ir)]) == 0
    ids = torch.arange(4, 30).reshape(2, 13)
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    served = autoquant.load(out / "checkpoint")  # on the runtime that it was found on
    assert type(served.forward).__name__ == "EngineForward"
    with torch.inference_mode():
        found = served(**tokens).logits
        ours = autoquant.load(out / "checkpoint", runtime="torch")(**tokens).logits.float()
    assert torch.equal(found, autoquant.load(ir)(**tokens).logits)
    assert torch.allclose(ours, found, atol=0.1 * float(ours.abs().max()))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="the extra [openvino] is not installed")
def test_the_main_job_on_the_fastest_runtime(model: Path, data: Path, tmp_path: Path) -> None:
    assert main(arguments(model, data, tmp_path / "run", "--runtime", "auto", "--quiet")) == 0
    price = json.loads((tmp_path / "run" / "price.json").read_text())
    choice = price["runtime_choice"]
    fastest = {name: min(found.values()) for name, found in choice["ms"].items()}
    assert set(fastest) == {"torch", "openvino"} and price["runtime"] == min(fastest, key=fastest.__getitem__)
    assert choice["reason"] in read(tmp_path / "run")["notes"]
    assert main(["search", "--resume", str(tmp_path / "run"), "--quiet"]) == 0  # takes the choice from the folder


def test_gpt2_keeps_its_conv1d_layers_quantized(workplace):
    """A model that compressed-tensors cannot hold goes out in the format autoquant, and comes back through transformers."""
    model = tiny.gpt2(workplace / "gpt2")
    text = workplace / "text.txt"
    text.write_text("\n".join(tiny.texts(600)), encoding="utf8")
    out = workplace / "gpt2-run"
    options = ["--task", "causal-lm", "--data", str(text), "--max-length", "16", "--out", str(out)]
    options += ["--objective", "memory", "--budget", "0.05", "--trials", "4", "--threads", "1", "--quiet"]
    code = main(["search", str(model), *options])
    report = read(out)
    assert code == 0, report["sentence"]
    layer_map = yaml.safe_load((out / "layer_map.yaml").read_text())
    assert layer_map["format"] == "autoquant"
    from transformers import AutoModelForCausalLM

    ids = torch.arange(6)[None] % 10
    with torch.inference_mode():
        ours = autoquant.load(out / "checkpoint")(input_ids=ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(out / "checkpoint")(input_ids=ids).logits
    assert torch.equal(ours, theirs)


class Pairs(autoquant.Task):
    """A task of one's own on a plain module: which of two classes, on random vectors."""

    name = "own"
    metric = "accuracy"

    def __init__(self, module: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = {
            split: torch.randn(n, 16, generator=generator)
            for split, n in (("calibration", 32), ("search", 128), ("certification", 300))
        }
        with torch.no_grad():
            self.y = {split: module(x).argmax(-1) for split, x in self.x.items()}

    def rows(self, split):
        return len(self.x[split])

    items = rows

    def lengths(self, split):
        return [1] * self.rows(split)

    def batch(self, split, rows):
        return {"x": self.x[split][list(rows)]}

    def forward(self, model, batch):
        return model(batch["x"].to(next(model.parameters()).dtype)).float()

    def score(self, split, reduced, reference=None):
        return (reduced.argmax(-1) == self.y[split]).double().numpy()

    def example(self, batch_size, seq_len):
        return {"x": self.x["search"][:batch_size]}


def test_any_module_with_a_task_object(workplace):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(16, 64), torch.nn.LayerNorm(64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
    ).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = autoquant.search(
        module, Pairs(module), out=workplace / "module", budget=0.2, objective="memory", trials=6, quiet=True
    )
    assert result.verdict == "PASS"
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    fresh = torch.nn.Sequential(
        torch.nn.Linear(16, 64), torch.nn.LayerNorm(64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
    )
    loaded = result.load(model=fresh)
    task = Pairs(module)
    dtype = getattr(torch, result.layer_map.base_dtype)
    with torch.inference_mode():
        agreement = (
            (loaded(task.x["certification"].to(dtype)).argmax(-1) == task.y["certification"]).double().mean().item()
        )
    assert agreement == pytest.approx(result.report["metric"]["quantized"], abs=1e-9)
