"""What every checkpoint format promises. A new format joins by being in `FORMATS`."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from autoquant.artifacts import folder_bytes
from autoquant.checkpoint import FORMATS, load, register, write_checkpoint
from autoquant.checkpoint import write as write_module
from autoquant.errors import AutoquantError, CheckpointError
from autoquant.models.layers import inspect
from autoquant.values import LayerMap
from tests.maps import assembled, promised_bytes

SCHEMES = (
    "int8-channel-sym",
    "int8-channel-asym",
    "int8-tensor-sym/a8-token",
    "int8-channel-asym/a8-tensor",
    "int8-tensor-asym/a8-static",
    "int8-channel-asym/a8-outlier",
    "int6-channel-sym",
    "int4-channel-sym/a8-token",
)
OUTLIERS = tuple(range(1, 64, 4))
ALL_BUT_ONE = " ".join(map(str, OUTLIERS[1:]))


def _model() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, tie_word_embeddings=True, **sizes)).eval()


def _map(model: nn.Module, format: str, base: str) -> LayerMap:
    linears = [layer.name for layer in inspect(model).layers if layer.kind == "linear" and not layer.tied_to]
    layers = {name: (*SCHEMES, base)[i % (len(SCHEMES) + 1)] for i, name in enumerate(linears)}
    layers = {"model.embed_tokens": "int8-channel-asym", **layers, "lm_head": "int8-channel-asym/a8-token"}
    return LayerMap(
        layers=layers, base_dtype=base, format=format, input_absmax=dict.fromkeys(linears, 3.0),
        outliers={name: OUTLIERS for name, scheme in layers.items() if scheme.endswith("outlier")},
    )  # fmt: skip


def _output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(20).reshape(2, 10)).logits


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("base", ["float32", "bfloat16", "float16"])
def test_round_trip_is_bit_identical_and_the_source_is_unchanged(format: str, base: str, tmp_path: Path) -> None:
    model = _model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer_map = _map(model, format, base)
    expected = _output(assembled(model, layer_map))
    info = write_checkpoint(model, layer_map, tmp_path / "out")
    assert info["format"] == format
    assert torch.equal(_output(load(tmp_path / "out")), expected)
    after = model.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )
    assert "quantization_config" not in model.config.to_dict()


def test_bytes_on_disk_are_the_bytes_promised(format: str, tmp_path: Path) -> None:
    model = _model()
    layer_map = _map(model, format, "bfloat16")
    info = write_checkpoint(model, layer_map, tmp_path / "out")
    assert info["payload_bytes"] == promised_bytes(model, layer_map)
    header = info["file_bytes"] - info["payload_bytes"]
    assert folder_bytes(tmp_path / "out") == info["file_bytes"] and 0 < header < 200 * 64


def test_the_schemes_named_are_the_schemes_that_run_and_tied_stays_tied(format: str, tmp_path: Path) -> None:
    model = _model()
    layer_map = _map(model, format, "float32")
    write_checkpoint(model, layer_map, tmp_path / "out")
    loaded = load(tmp_path / "out")
    running = {
        name: getattr(module, "scheme_name", "float32")
        for name, module in loaded.named_modules()
        if name in layer_map.layers
    }
    assert running == dict(layer_map.layers)
    assert loaded.config.tie_word_embeddings and not loaded.training
    float_map = replace(layer_map, layers=dict.fromkeys(layer_map.layers, "float32"))
    write_checkpoint(model, float_map, tmp_path / "float")
    loaded = load(tmp_path / "float")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_from_pretrained_after_import_gives_a_model(format: str, tmp_path: Path) -> None:
    register()
    model = _model()
    # Weights only: int8 activations differ in the rounding of single codes between two implementations.
    layer_map = replace(_map(model, format, "float32"), input_absmax={})
    layer_map = replace(layer_map, layers={name: scheme.split("/")[0] for name, scheme in layer_map.layers.items()})
    write_checkpoint(model, layer_map, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(_output(again), _output(load(tmp_path / "out")), rtol=1e-4, atol=1e-5)


def test_processor_files_travel(format: str, tmp_path: Path) -> None:
    model = _model()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    (tmp_path / "chat.txt").write_text("hello")
    write_checkpoint(
        model,
        _map(model, format, "float32"),
        tmp_path / "out",
        source=tmp_path / "source",
        processor_files=[tmp_path / "chat.txt"],
    )
    assert (tmp_path / "out" / "tokenizer.json").is_file() and (tmp_path / "out" / "chat.txt").is_file()


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model()
    layer_map = _map(model, format, "float32")
    write_checkpoint(model, layer_map, tmp_path / "out")
    expected = _output(load(tmp_path / "out"))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(write_module, "save_file", full)
    with pytest.raises(AutoquantError, match=r"No space left on device.*untouched"):
        write_checkpoint(model, layer_map, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert torch.equal(_output(load(tmp_path / "out")), expected)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_checkpoint_formats as contract
from autoquant.checkpoint import write as write_module
save = write_module.save_file
def save_and_die(*args, **kwargs):
    save(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
write_module.save_file = save_and_die
model = contract._model()
write_module.write_checkpoint(model, contract._map(model, sys.argv[3], "float32"), Path(sys.argv[1]))
"""


def test_a_kill_leaves_no_half_folder(format: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out"), str(Path(__file__).parent), format]
    done = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (tmp_path / "out").exists()
    model = _model()
    write_checkpoint(model, _map(model, format, "float32"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda found: found.clear(), "outlier channels|16, 32, 48 or 64"),
        (lambda found: found.update(dict.fromkeys(found, "1 2")), "16, 32, 48 or 64 different numbers below 64"),
        (lambda found: found.update(dict.fromkeys(found, f"{ALL_BUT_ONE} 64")), "different numbers below 64"),
        (lambda found: found.update(dict.fromkeys(found, f"{ALL_BUT_ONE} 5")), "different numbers below 64"),
        (lambda found: found.update(dict.fromkeys(found, f"{ALL_BUT_ONE} -1")), "channel numbers"),
        (lambda found: found.update(dict.fromkeys(found, 5)), "channel numbers"),
    ],
)
def test_outlier_channels_that_cannot_be_are_refused_and_never_read_by_a_kernel(
    format: str, spoil: Callable[[dict], None], reason: str, tmp_path: Path
) -> None:
    model = _model()
    layer_map = _map(model, format, "float32")
    write_checkpoint(model, layer_map, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    assert set(config["quantization_config"]["outliers"]) == set(layer_map.outliers)
    spoil(config["quantization_config"]["outliers"])
    path.write_text(json.dumps(config))
    if format == "compressed-tensors" and not config["quantization_config"]["outliers"]:
        reason = "its weights are stored as"  # without the key, the layer is one whose weights alone are quantized
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(format: str, share: float, tmp_path: Path) -> None:
    model = _model()
    write_checkpoint(model, _map(model, format, "float32"), tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        load(tmp_path / "out")


def test_the_config_can_be_read_by_people_and_json(format: str, tmp_path: Path) -> None:
    model = _model()
    write_checkpoint(model, _map(model, format, "bfloat16"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == format
    assert config["dtype"] == "bfloat16" and config["architectures"] == ["LlamaForCausalLM"]
