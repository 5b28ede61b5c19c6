"""Folders that load, and folders that are refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, BertConfig, BertModel

from autoquant.checkpoint import load, write_checkpoint
from autoquant.errors import CheckpointError
from autoquant.runtimes.torch_runtime import FloatLayer, Int8Conv2d, Int8Embedding, Int8Linear
from autoquant.values import FLOAT_DTYPES
from tests.maps import assembled, promised_bytes

from .conftest import Tower, make_map, output


def test_conv1d_and_float_layers_of_another_dtype_round_trip(gpt2: nn.Module, tmp_path: Path) -> None:
    layer_map = make_map(
        gpt2, "int8-channel-asym/a8-token", "bfloat16", wte="int8-channel-asym", c_attn="int8-channel-sym/a8-static",
        c_fc="float32", mlp__c_proj="int8-channel-asym",
    )  # fmt: skip
    assert layer_map.format == "autoquant"
    write_checkpoint(gpt2, layer_map, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert torch.equal(output(loaded), output(assembled(gpt2, layer_map)))
    block = loaded.transformer.h[0]
    kinds = (type(block.attn.c_attn), type(block.mlp.c_fc), type(loaded.transformer.wte))
    assert kinds == (Int8Linear, FloatLayer, Int8Embedding)


WO = {
    "none": ("BASE", "BASE"),
    "all": ("int8-channel-sym/a8-token", "int8-channel-sym/a8-token"),
    "weights": ("int8-channel-asym", "int8-channel-asym"),
    "wo": ("BASE", "int8-channel-sym/a8-static"),
    "all but wo": ("int8-channel-sym/a8-token", "BASE"),
    "wo in float32": ("int8-channel-sym/a8-token", "float32"),
}


@pytest.mark.parametrize("base", FLOAT_DTYPES)
@pytest.mark.parametrize("which", WO)
def test_layers_that_a_model_keeps_in_float32_round_trip(t5: nn.Module, tmp_path: Path, base: str, which: str) -> None:
    others, wo = (scheme.replace("BASE", base) for scheme in WO[which])
    layer_map = make_map(t5, others, base, wo=wo, relative_attention_bias=base)
    info = write_checkpoint(t5, layer_map, tmp_path / "out")
    loaded, expected = load(tmp_path / "out"), assembled(t5, layer_map)
    assert torch.equal(output(loaded), output(expected))
    kept = "float32" if base == "float16" else base
    for model in (loaded, expected):
        weight = model.encoder.block[0].layer[1].DenseReluDense.wo.weight
        assert weight.dtype == getattr(torch, {base: kept, "float32": "float32"}.get(wo, "int8"))
        assert model.encoder.block[0].layer[1].DenseReluDense.wi.weight.dtype in (getattr(torch, base), torch.int8)
    assert info["payload_bytes"] == promised_bytes(t5, layer_map)
    assert (output(loaded) - output(t5)).abs().max() < 0.1 * output(t5).abs().max()


def test_a_convolution_round_trips(dinov2: nn.Module, tmp_path: Path) -> None:
    layer_map = make_map(dinov2, projection="int8-channel-sym/a8-token")
    write_checkpoint(dinov2, layer_map, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert isinstance(loaded.dinov2.embeddings.patch_embeddings.projection, Int8Conv2d)
    assert torch.equal(output(loaded), output(assembled(dinov2, layer_map)))


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_a_module_outside_transformers_round_trips(tower: nn.Module, tmp_path: Path, base: str) -> None:
    layer_map = make_map(tower, "int8-channel-sym/a8-token", base, patches="int8-channel-asym")
    info = write_checkpoint(tower, layer_map, tmp_path / "out")
    assert info["format"] == "autoquant" and info["payload_bytes"] == promised_bytes(tower, layer_map)
    assert not (tmp_path / "out" / "config.json").exists()
    other = Tower()
    other.shift = tower.shift  # not stored: the architecture's own
    loaded = load(tmp_path / "out", model=other)
    assert torch.equal(output(loaded), output(assembled(tower, layer_map)))
    with pytest.raises(CheckpointError, match="model=built"):
        load(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"another model|no layer"):
        load(tmp_path / "out", model=nn.Sequential(nn.Linear(2, 2)))


def test_a_float_module_outside_transformers_keeps_its_ties(tower: nn.Module, tmp_path: Path) -> None:
    write_checkpoint(tower, make_map(tower, "float32"), tmp_path / "out")
    other = Tower().train()
    other.shift = tower.shift
    loaded = load(tmp_path / "out", model=other)
    assert loaded.second.weight is loaded.third.weight and not loaded.training
    assert torch.equal(output(loaded), output(tower))


def test_the_base_model_of_a_checkpoint_opens_too(bert: nn.Module, tmp_path: Path) -> None:
    for scheme in ("int8-channel-sym", "float16"):
        layer_map = make_map(bert, scheme)
        write_checkpoint(bert, layer_map, tmp_path / scheme)
        ids = torch.arange(20).reshape(2, 10)
        with torch.no_grad():
            stock = AutoModel.from_pretrained(tmp_path / scheme)(ids).last_hidden_state
            whole = load(tmp_path / scheme).bert(ids).last_hidden_state
        assert torch.allclose(stock, whole, atol=1e-5)


def test_another_tools_folder_with_class_targets(bert: nn.Module, tmp_path: Path) -> None:
    layer_map = make_map(bert, "int8-channel-sym/a8-token", embeddings="float32", classifier="float32")
    write_checkpoint(bert, layer_map, tmp_path / "out")
    (tmp_path / "out" / "layer_map.yaml").unlink()
    group = {
        "targets": ["Linear"],
        "format": None,
        "weights": _args("channel"),
        "input_activations": _args("token", True),
    }
    _edit(tmp_path / "out", lambda c: c.update(config_groups={"group_0": group}, ignore=["classifier"]))
    assert torch.equal(output(load(tmp_path / "out")), output(assembled(bert, layer_map)))


def test_a_plain_folder_keeps_its_dtype(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=40, **sizes)).half().save_pretrained(tmp_path)
    assert load(tmp_path).dtype == torch.float16


def _args(strategy: str, dynamic: bool = False) -> dict:
    return {
        "num_bits": 8,
        "type": "int",
        "strategy": strategy,
        "symmetric": True,
        "dynamic": dynamic,
        "observer": "minmax",
    }


def _edit(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


def _rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


SCALE = "classifier.weight_scale"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, "truncated or corrupt"),
    "garbage": (lambda f: (f / "model.safetensors").write_bytes(b"not a header at all"), "truncated or corrupt"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "can run code when opened"),
    "missing scale": (lambda f: _rewrite(f, lambda t: t.pop(SCALE)), "classifier.weight_scale"),
    "missing float": (lambda f: _rewrite(f, lambda t: t.pop("bert.pooler.dense.bias")), "bert.pooler.dense.bias"),
    "extra tensor": (lambda f: _rewrite(f, lambda t: t.update(stray=torch.ones(1))), "unexpected stray"),
    "wrong shape": (
        lambda f: _rewrite(f, lambda t: t.update({SCALE: torch.ones(5, 1)})),
        "classifier.weight_scale|mismatch",
    ),
    "bad scale": (lambda f: _rewrite(f, lambda t: t[SCALE].fill_(float("nan"))), "not a positive number"),
    "unknown method": (lambda f: _edit(f, lambda c: c.update(quant_method="gptq")), "quantized with 'gptq'"),
    "unknown layout": (
        lambda f: _edit(f, lambda c: c["config_groups"]["group_0"].update(format="pack-quantized")),
        "pack-quantized",
    ),
    "four bits": (
        lambda f: _edit(f, lambda c: c["config_groups"]["group_0"]["weights"].update(num_bits=4)),
        "of 4 bits as .int-quantized",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "neither config.json"),
    "bad config": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "newer map": (lambda f: (f / "layer_map.yaml").write_text("schema_version: 99"), "schema version 99"),
    "edited map": (
        lambda f: (f / "layer_map.yaml").write_text((f / "layer_map.yaml").read_text().replace("sym", "asym")),
        "does not change its weights",
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_damaged_folder_is_refused_with_the_reason(bert: nn.Module, tmp_path: Path, damage: str) -> None:
    write_checkpoint(bert, make_map(bert), tmp_path / "out")
    harm, reason = BROKEN[damage]
    harm(tmp_path / "out")
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path / "out")


def test_newer_native_format_and_unknown_architecture(gpt2: nn.Module, tmp_path: Path) -> None:
    write_checkpoint(gpt2, make_map(gpt2, c_fc="int8-channel-sym"), tmp_path / "out")
    _edit(tmp_path / "out", lambda c: c.update(schema_version=99))
    with pytest.raises(CheckpointError, match="schema version 99"):
        load(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "architectures": ["pipeline"]}))
    with pytest.raises(CheckpointError, match="does not know"):
        load(tmp_path / "out")


def test_no_folder_and_needless_model(bert: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load(tmp_path / "none")
    write_checkpoint(bert, make_map(bert), tmp_path / "out")
    with pytest.raises(CheckpointError, match="without model="):
        load(tmp_path / "out", model=bert)
