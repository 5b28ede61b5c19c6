"""Stock transformers, in a fresh process that never imports autoquant, computes what `autoquant.load` computes.

With int8 activations the two may differ by rounding: a code that lies between two steps goes up in one and down in the
other. So the comparison with activations quantizes one layer; a deep model amplifies that rounding (to the size of the
quantization error itself), and so would a change of the last bit of its input.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from autoquant.checkpoint import load, write_checkpoint

from .conftest import IDS, make_map, output

SCRIPT = """
import sys, torch, transformers
folder, auto_class, result = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder).eval()
with torch.no_grad():
    logits = model(torch.arange(20).reshape(2, 10)).logits
assert not any(name.split(".")[0] == "autoquant" for name in sys.modules)
torch.save(logits.float(), result)
"""


def _stock(folder: Path, auto_class: str) -> torch.Tensor:
    result = folder.parent / "logits.pt"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), auto_class, str(result)]
    done = subprocess.run(command, env=environment, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(result, weights_only=True)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(("base", "allowed"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_bert_with_int8_weights_of_every_kind(bert: nn.Module, tmp_path: Path, base: str, allowed: float) -> None:
    assert IDS.shape == (2, 10)
    layer_map = make_map(
        bert, "int8-channel-sym", base, query="int8-tensor-asym", key="int8-channel-asym", value="int8-tensor-sym",
        layer__1__output__dense=base,
    )  # fmt: skip
    write_checkpoint(bert, layer_map, tmp_path / "out")
    stock = _stock(tmp_path / "out", "AutoModelForSequenceClassification")
    assert _difference(stock, output(load(tmp_path / "out"))) < allowed


def test_bert_with_weights_of_8_6_and_4_bits(bert: nn.Module, tmp_path: Path) -> None:
    layer_map = make_map(
        bert, "int6-channel-sym", query="int4-channel-sym", value="int8-channel-asym", embeddings="int8-channel-sym"
    )
    assert layer_map.format == "compressed-tensors"
    write_checkpoint(bert, layer_map, tmp_path / "out")
    stock = _stock(tmp_path / "out", "AutoModelForSequenceClassification")
    assert _difference(stock, output(load(tmp_path / "out"))) < 1e-4


def test_bert_with_weights_of_4_bits_and_int8_activations(bert: nn.Module, tmp_path: Path) -> None:
    layer_map = make_map(
        bert, "int4-channel-sym", layer__3__intermediate__dense="int4-channel-sym/a8-token", embeddings="float32"
    )
    assert layer_map.format == "compressed-tensors"
    write_checkpoint(bert, layer_map, tmp_path / "out")
    stock = _stock(tmp_path / "out", "AutoModelForSequenceClassification")
    assert _difference(stock, output(load(tmp_path / "out"))) < 1e-2


@pytest.mark.parametrize("scheme", ["int8-channel-asym/a8-token", "int8-channel-sym/a8-static"])
def test_llama_with_a_tied_int8_head_and_int8_activations(llama: nn.Module, tmp_path: Path, scheme: str) -> None:
    weights = scheme.split("/")[0]
    layer_map = make_map(llama, weights, lm_head=scheme)
    assert layer_map.format == "compressed-tensors"
    write_checkpoint(llama, layer_map, tmp_path / "out")
    assert _difference(_stock(tmp_path / "out", "AutoModelForCausalLM"), output(load(tmp_path / "out"))) < 1e-2


def test_a_layer_with_outlier_channels_is_one_of_int8_weights_to_other_readers(tmp_path: Path) -> None:
    """They know no such inputs, and must not read 8 bits where 16 were meant."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=True, **sizes)).eval()
    layer_map = make_map(llama, "int8-channel-sym", lm_head="int8-channel-sym/a8-outlier")
    layer_map = replace(layer_map, outliers={"lm_head": tuple(range(16))})
    assert layer_map.format == "compressed-tensors"
    write_checkpoint(llama, layer_map, tmp_path / "out")
    assert load(tmp_path / "out").lm_head.scheme_name == "int8-channel-sym/a8-outlier"
    write_checkpoint(llama, make_map(llama, "int8-channel-sym"), tmp_path / "weights")
    stock = _stock(tmp_path / "out", "AutoModelForCausalLM")
    assert _difference(stock, output(load(tmp_path / "weights"))) < 1e-4
    assert _difference(stock, output(load(tmp_path / "out"))) < 2e-2


def test_a_format_that_stock_transformers_does_not_know_is_not_misread(bert: nn.Module, tmp_path: Path) -> None:
    write_checkpoint(bert, make_map(bert, "int8-channel-sym", classifier="float16"), tmp_path / "out")
    with pytest.raises(AssertionError, match=r"no file named model.safetensors"):
        _stock(tmp_path / "out", "AutoModelForSequenceClassification")
