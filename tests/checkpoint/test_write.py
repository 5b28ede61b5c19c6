"""What a written folder holds."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs as PeerArgs
from compressed_tensors.quantization import QuantizationScheme
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from autoquant.checkpoint import load, read_layer_map, write_checkpoint
from autoquant.checkpoint import write as write_module
from autoquant.errors import AutoquantError, FolderError, LayerMapError
from autoquant.models.layers import inspect
from autoquant.schemes import dequantize, get_scheme, layer_bytes, quantize
from autoquant.values import LayerMap
from tests.maps import assembled, promised_bytes

from .conftest import make_map, output

PEER_INT6 = QuantizationScheme(targets=["Linear"], weights=PeerArgs(num_bits=6, strategy="channel", symmetric=False))
SCHEMES = (
    "int8-tensor-sym",
    "int8-channel-asym",
    "int8-channel-sym/a8-token",
    "int8-tensor-asym/a8-static",
    "int6-channel-sym",
)


@pytest.mark.parametrize("base", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_bytes_on_disk_are_the_bytes_promised(bert: nn.Module, tmp_path: Path, base: str, scheme: str) -> None:
    layer_map = make_map(bert, scheme, base, embeddings="int8-channel-asym", fc1=base)
    info = write_checkpoint(bert, layer_map, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    on_disk = sum(tensor.nbytes for tensor in tensors.values())
    assert on_disk == info["payload_bytes"] == promised_bytes(bert, layer_map)
    for layer in inspect(bert).layers:
        promised = layer_bytes(layer, get_scheme(layer_map.layers[layer.name]), base)
        assert info["layer_bytes"][layer.name] == promised, layer.name
    assert info["file_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_the_tensors_have_the_layout_of_compressed_tensors(bert: nn.Module, tmp_path: Path) -> None:
    layer_map = make_map(bert, "int8-channel-asym", "bfloat16", query="int8-tensor-sym/a8-static")
    write_checkpoint(bert, layer_map, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    dense = {
        k.rpartition(".")[2]: t for k, t in tensors.items() if k.startswith("bert.encoder.layer.3.intermediate.dense.")
    }
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in dense.items()} == {
        "weight": (torch.int8, (24, 16)),
        "weight_scale": (torch.bfloat16, (24, 1)),
        "weight_zero_point": (torch.int8, (24, 1)),
        "bias": (torch.bfloat16, (24,)),
    }
    query = {
        k.rpartition(".")[2]: t
        for k, t in tensors.items()
        if k.startswith("bert.encoder.layer.3.attention.self.query.")
    }
    assert set(query) == {"weight", "weight_scale", "input_scale", "bias"}
    assert float(query["input_scale"]) == pytest.approx(4 / 127.5, rel=1e-2) and query["input_scale"].shape == (1,)
    assert tensors["bert.embeddings.LayerNorm.weight"].dtype == torch.bfloat16


def test_weights_of_fewer_than_8_bits_are_packed_as_compressed_tensors_packs_them(
    bert: nn.Module, tmp_path: Path
) -> None:
    layer_map = make_map(
        bert,
        "int6-channel-sym/a8-token",
        "bfloat16",
        dense="int6-channel-asym",
        embeddings="bfloat16",
        key="int8-channel-sym",
    )
    assert layer_map.format == "autoquant"
    write_checkpoint(bert, layer_map, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "autoquant.safetensors")
    name = "bert.encoder.layer.3.intermediate.dense"
    dense = {k.rpartition(".")[2]: t for k, t in tensors.items() if k.startswith(f"{name}.")}
    assert {last: (tensor.dtype, tuple(tensor.shape)) for last, tensor in dense.items()} == {
        "weight_packed": (torch.int32, (24, 3)),  # 16 codes of 6 bits
        "weight_shape": (torch.int64, (2,)),
        "weight_scale": (torch.bfloat16, (24, 1)),
        "weight_zero_point": (torch.int32, (5, 1)),
        "bias": (torch.bfloat16, (24,)),
    }
    peer = PackedQuantizationCompressor.decompress(dense, PEER_INT6)
    scheme = get_scheme("int6-channel-asym").weights
    assert scheme is not None
    q = quantize(bert.get_submodule(name).weight, scheme, scale_dtype=torch.bfloat16)
    assert dense["weight_shape"].tolist() == [24, 16] and torch.equal(peer["weight"], dequantize(q))
    layers = {name: s if s != "int6-channel-asym" else "int6-channel-sym" for name, s in layer_map.layers.items()}
    write_checkpoint(bert, replace(layer_map, layers=layers, format="compressed-tensors"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    formats = {group["weights"]["num_bits"]: group["format"] for group in config["config_groups"].values()}
    assert formats == {8: "int-quantized", 6: "pack-quantized"} and config["format"] == "mixed-precision"


@pytest.mark.parametrize("name", ["bert", "dinov2", "gpt2"])
@pytest.mark.parametrize("scheme", ["int6-channel-asym", "int4-channel-sym"])
def test_packed_weights_of_every_kind_of_layer_come_back(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, scheme: str
) -> None:
    """Embeddings, convolutions and GPT-2's transposed layers; a weight that two layers share keeps its 8 bits."""
    model = request.getfixturevalue(name)
    layers = inspect(model).layers
    shared = {name for layer in layers if layer.tied_to for name in (layer.name, layer.tied_to)}
    chosen = {layer.name: "int8-channel-sym" if layer.name in shared else scheme for layer in layers}
    layer_map = LayerMap(layers=chosen, base_dtype="bfloat16", format="autoquant")
    info = write_checkpoint(model, layer_map, tmp_path / "out")
    assert info["payload_bytes"] == promised_bytes(model, layer_map)
    assert torch.equal(output(load(tmp_path / "out")), output(assembled(model, layer_map)))


def test_a_shared_weight_cannot_be_packed(llama: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        LayerMapError, match="lm_head: torch cannot run int6-channel-sym: a weight that layers share has 8"
    ):
        write_checkpoint(llama, make_map(llama, "int6-channel-sym"), tmp_path / "out")


def test_targets_and_ignored_layers_together_are_all_layers_each_once(bert: nn.Module, tmp_path: Path) -> None:
    layer_map = make_map(
        bert, "int8-channel-sym/a8-token", **{"layer__1__output__dense": "float32", "value": "int8-tensor-sym"}
    )
    write_checkpoint(bert, layer_map, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    lists = [group["targets"] for group in config["config_groups"].values()] + [config["ignore"]]
    for layer in inspect(bert).layers:
        hits = [targets for targets in lists if any(re.match(t.removeprefix("re:"), layer.name) for t in targets)]
        assert len(hits) == 1, layer.name
        assert (hits[0] is config["ignore"]) == (layer_map.layers[layer.name] == "float32"), layer.name


def test_a_tied_weight_is_stored_once_and_each_layer_has_its_scale(llama: nn.Module, tmp_path: Path) -> None:
    layer_map = make_map(llama, "int8-channel-asym/a8-token")
    info = write_checkpoint(llama, layer_map, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in tensors and tensors["model.embed_tokens.weight"].dtype == torch.int8
    assert torch.equal(tensors["lm_head.weight_scale"], tensors["model.embed_tokens.weight_scale"])
    assert info["payload_bytes"] == promised_bytes(llama, layer_map)
    loaded = load(tmp_path / "out")
    assert torch.equal(output(loaded), output(assembled(llama, layer_map)))


def test_names_in_the_file_are_those_of_the_hub(dinov2: nn.Module, tmp_path: Path) -> None:
    layer_map = make_map(dinov2, "int8-channel-sym")
    info = write_checkpoint(dinov2, layer_map, tmp_path / "out")
    with safe_open(
        tmp_path / "out" / f"{'autoquant' if info['format'] == 'autoquant' else 'model'}.safetensors", "pt"
    ) as file:
        names = set(file.keys())
    assert "dinov2.encoder.layer.0.attention.attention.query.weight_scale" in names
    assert torch.equal(output(load(tmp_path / "out")), output(assembled(dinov2, layer_map)))


def test_all_float_in_the_base_dtype_is_an_ordinary_checkpoint(bert: nn.Module, tmp_path: Path) -> None:
    info = write_checkpoint(bert, make_map(bert, "bfloat16", "bfloat16"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert info["format"] is None and "quantization_config" not in config and config["dtype"] == "bfloat16"
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(output(stock), output(load(tmp_path / "out")))
    assert output(stock).dtype == torch.float32 and stock.dtype == torch.bfloat16


def test_large_weights_are_sharded(bert: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_module, "SHARD_SIZE", 10_000)
    for name, scheme in {"compressed": "int8-channel-sym", "native": "float16"}.items():
        layer_map = make_map(bert, scheme)
        write_checkpoint(bert, layer_map, tmp_path / name)
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
        expected = output(assembled(bert, layer_map))
        assert torch.equal(output(load(tmp_path / name)), expected)
        if name == "native":
            assert torch.equal(output(AutoModelForSequenceClassification.from_pretrained(tmp_path / name)), expected)


def test_the_layer_map_is_in_the_folder(bert: nn.Module, tmp_path: Path) -> None:
    layer_map = make_map(bert)
    write_checkpoint(bert, layer_map, tmp_path / "out")
    assert read_layer_map(tmp_path / "out") == layer_map


def test_files_of_the_source_keep_their_place(bert: nn.Module, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    for name in ("tokenizer.json", "modules.json", "1_Pooling/config.json", "extra.txt", "pytorch_model.bin"):
        (source / name).write_text(name)
    files = [source / "extra.txt", source / "1_Pooling" / "config.json"]
    write_checkpoint(bert, make_map(bert), tmp_path / "out", source=source, processor_files=files)
    for name in ("tokenizer.json", "modules.json", "1_Pooling/config.json", "extra.txt"):
        assert (tmp_path / "out" / name).read_text() == name
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


def test_only_a_checkpoint_is_replaced(bert: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderError, match="no checkpoint of autoquant"):
        write_checkpoint(bert, make_map(bert), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    write_checkpoint(bert, make_map(bert), tmp_path / "out")
    write_checkpoint(bert, make_map(bert, "float32"), tmp_path / "out")
    assert set(read_layer_map(tmp_path / "out").layers.values()) == {"float32"}
    with pytest.raises(FolderError, match="folder of the float model"):
        write_checkpoint(bert, make_map(bert), tmp_path / "out", source=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_what_a_killed_process_left_is_cleared_by_the_next_write(bert: nn.Module, tmp_path: Path) -> None:
    abandoned = tmp_path / ".out.partial-999999999"
    abandoned.mkdir()
    write_checkpoint(bert, make_map(bert), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unwritable_folder_is_explained(bert: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AutoquantError, match=r"Could not write|exists and is no"):
        write_checkpoint(bert, make_map(bert), tmp_path / "file" / "out")
