"""A model with outliers, from the search to a map that another process applies again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import autoquant
from autoquant.cli import main
from tests import tiny

pytestmark = pytest.mark.slow

OUTLIERS = 40.0
"""What the first three channels of every norm are multiplied by."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.llama(tmp_path_factory.mktemp("outliers") / "llama")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("layernorm.weight"):
            weight[:3] *= OUTLIERS
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "texts.txt").write_text("\n".join(tiny.texts(2000)), encoding="utf8")
    return folder


def searched(llama: Path, out: Path, *more: str) -> Path:
    line = ["search", str(llama), "--task", "causal-lm", "--data", str(llama / "texts.txt"), "--out", str(out), "--quiet",
            "--budget", "0.3", "--trials", "6", "--threads", "1", "--max-length", "32", "--objective", "memory",
            *more]  # fmt: skip
    assert main(line) in (0, 4)
    return out


def test_a_map_with_smoothing_is_applied_again(llama: Path, tmp_path: Path) -> None:
    run = searched(llama, tmp_path / "run")
    layer_map = autoquant.read_layer_map(run / "layer_map.yaml")
    assert (
        json.loads((run / "smoothing.json").read_text())["pairs"] == 9
    )  # four a block, and the last norm before the head
    norm = layer_map.smoothing[0]
    assert norm.source == "model.layers.0.input_layernorm" and min(norm.exponents[:3]) > max(norm.exponents[3:])
    assert main(["apply", str(llama), str(run / "layer_map.yaml"), "--out", str(tmp_path / "again")]) == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (run / "checkpoint", tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert main(["search", "--resume", str(run), "--quiet"]) in (0, 4)  # takes smoothing.json


def test_without_smoothing_the_same_layers_diverge_more(llama: Path, tmp_path: Path) -> None:
    with_it = searched(llama, tmp_path / "smoothed")
    without = searched(llama, tmp_path / "plain", "--no-smooth")
    assert not (without / "smoothing.json").exists() and not autoquant.read_layer_map(without).smoothing
    layer, scheme = "model.layers.1.mlp.gate_proj", "int8-channel-sym/a8-token"
    scores = [json.loads((run / "profile.json").read_text())["scores"][layer][scheme] for run in (with_it, without)]
    assert scores[0] < scores[1] / 4
