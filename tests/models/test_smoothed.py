"""Scaling channels by powers of two leaves a model's outputs alone, and its own weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autoquant.errors import LayerMapError
from autoquant.models.layers import fingerprint_model
from autoquant.models.smoothed import columns, smoothed, smoothing_of
from autoquant.values import Smoothing
from tests.opened import gpt2, tied_llama

IDS = torch.arange(20).reshape(2, 10)
BLOCK = "model.layers.0."
QKV = tuple(f"{BLOCK}self_attn.{name}_proj" for name in "qkv")
NORM = Smoothing(f"{BLOCK}input_layernorm", QKV, (-8, 7, 3, 0) * 8)
HEADS = Smoothing(f"{BLOCK}self_attn.v_proj", (f"{BLOCK}self_attn.o_proj",), tuple(range(-8, 8)), head=8)
GATED = Smoothing(f"{BLOCK}mlp.up_proj", (f"{BLOCK}mlp.down_proj",), (1, -1, 2, -2) * 16)


@pytest.fixture
def llama(tmp_path: Path) -> nn.Module:
    return tied_llama(tmp_path / "llama").eval()


@torch.inference_mode()
def logits(model: nn.Module) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_the_same_bit_by_bit(llama: nn.Module, dtype: torch.dtype) -> None:
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    model = smoothed(llama.to(dtype), [NORM, HEADS, GATED])
    assert torch.equal(logits(model), logits(llama))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, llama.state_dict()[name])}
    assert changed == {f"{s.source}.weight" for s in (NORM, HEADS, GATED)} | {
        f"{name}.weight" for s in (NORM, HEADS, GATED) for name in s.layers
    }
    assert all(torch.equal(value, before[name].to(dtype)) for name, value in llama.state_dict().items())


def test_weights_are_scaled_as_they_are_read(llama: nn.Module) -> None:
    weights, model = llama.state_dict(), smoothed(llama, [NORM, HEADS]).state_dict()
    norm, q = f"{NORM.source}.weight", f"{QKV[0]}.weight"
    assert model[norm][1] == weights[norm][1] / 128 and model[norm][0] == weights[norm][0] * 256
    assert torch.equal(model[q][:, 1], weights[q][:, 1] * 128)
    o = f"{HEADS.layers[0]}.weight"  # 2 heads of values, each read by 2 of 4 heads
    factors = model[o][0] / weights[o][0]
    assert torch.equal(factors, 2.0 ** torch.tensor([*range(-8, 0), *range(-8, 0), *range(8), *range(8)]))
    assert torch.equal(columns(HEADS, 32), factors.log2().long())


def test_conv1d_and_biases(tmp_path: Path) -> None:
    model = gpt2(tmp_path / "gpt2").eval()
    name = "transformer.h.0."
    for parameter in model.get_submodule(f"{name}ln_1").parameters():
        torch.nn.init.normal_(parameter)
    pair = Smoothing(f"{name}ln_1", (f"{name}attn.c_attn",), (3, -2) * 16)
    assert torch.equal(logits(smoothed(model, [pair])), logits(model))


def test_what_a_model_has_is_known_and_undone(llama: nn.Module) -> None:
    model = smoothed(llama, [NORM, GATED])
    assert smoothing_of(llama) == () and smoothing_of(model) == (NORM, GATED)
    assert smoothed(model, [NORM, GATED]) is model and smoothed(llama, []) is llama
    assert fingerprint_model(model) == fingerprint_model(llama)
    back = smoothed(smoothed(model, [HEADS]), [])
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in llama.state_dict().items())
    assert smoothing_of(back) == () and fingerprint_model(back) == fingerprint_model(llama)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(NORM, source="model.layers.9.input_layernorm"), "no such module"),
        (replace(NORM, layers=(f"{BLOCK}mlp",)), "no such module"),
        (replace(NORM, exponents=(0, 1)), "2 channels, but .*input_layernorm has 32"),
        (replace(GATED, layers=(QKV[0],)), "64 channels, but .*q_proj has 32"),
        (replace(NORM, layers=(f"{BLOCK}post_attention_layernorm",)), "no linear layer"),
        (replace(HEADS, head=5), "heads of 5"),
    ],
)
def test_what_does_not_fit_is_named(llama: nn.Module, wrong: Smoothing, message: str) -> None:
    with pytest.raises(LayerMapError, match=message):
        smoothed(llama, [wrong])


def test_a_smoothing_survives_its_text() -> None:
    for scaling in (NORM, HEADS, GATED):
        assert Smoothing.from_dict(scaling.to_dict(), "file") == scaling
    for value in (
        {},
        {**NORM.to_dict(), "exponents": "8g"},
        {**NORM.to_dict(), "layers": []},
        {**NORM.to_dict(), "x": 1},
        {**NORM.to_dict(), "head": "x"},
        {**NORM.to_dict(), "head": -8},
        "8",
    ):
        with pytest.raises(LayerMapError, match="file"):
            Smoothing.from_dict(value, "file")
