"""What every export promises. A new one joins by being in `EXPORTS` (and in the tables of tests/exports/read.py)."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from exports.read import ALONE, CONSTANTS
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification, PreTrainedModel

from autoquant import checkpoint
from autoquant.artifacts import folder_bytes
from autoquant.checkpoint import format_for, write_checkpoint
from autoquant.errors import CheckpointError, FolderError, SchemeError, UsageError
from autoquant.exports import EXPORTS, Export, export, load, weight_bytes
from autoquant.models.layers import inspect
from autoquant.runtimes.portable import PortableRuntime
from autoquant.schemes import SCHEMES, project
from autoquant.values import LayerMap

MODELS = {
    "bert": (tiny.bert, AutoModel),
    "gpt2": (tiny.gpt2, AutoModelForCausalLM),
    "llama": (tiny.llama, AutoModelForCausalLM),
    "vit": (tiny.vit, AutoModelForImageClassification),
}
BASES = ("float32", "bfloat16")


@pytest.fixture(params=EXPORTS)
def kind(request: pytest.FixtureRequest) -> Export:
    if reason := EXPORTS[request.param].missing():
        pytest.skip(reason)
    return EXPORTS[request.param]


def batch(name: str, rows: int, positions: int) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(rows + positions)
    if name == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=make)}
    mask = torch.ones((rows, positions), dtype=torch.long)
    mask[-1, positions // 2 + 1 :] = 0
    ids = torch.randint(4, 100, (rows, positions), generator=make)
    found = {"input_ids": ids, "attention_mask": mask}
    return found | {"token_type_ids": torch.zeros_like(ids)} if name == "bert" else found


def calibrated(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, float]:
    found: dict[str, float] = {}
    hooks = [
        model.get_submodule(layer.name).register_forward_pre_hook(
            lambda module, args, name=layer.name: found.update(
                {name: max(found.get(name, 0), float(args[0].abs().max()))}
            )
        )
        for layer in inspect(model).layers
        if layer.kind != "embedding"
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def make(folder: Path, name: str, scheme: str, base: str) -> tuple[PreTrainedModel, Path]:
    """A tiny float model, and a checkpoint of it in which every layer that can has this scheme."""
    writer, auto = MODELS[name]
    source = writer(folder / "float")
    model = auto.from_pretrained(source).eval()
    layers = inspect(model).layers
    chosen = {}
    for layer in layers:
        wanted = project(SCHEMES[scheme], layer.kind)
        fits = PortableRuntime().supports(layer, wanted) is None
        chosen[layer.name] = wanted.name if fits else base
    owners = {layer.name: layer.tied_to for layer in layers if layer.tied_to}
    if owners and any(SCHEMES[chosen[a]].weights != SCHEMES[chosen[b]].weights for a, b in owners.items()):
        chosen |= {name: base for pair in owners.items() for name in pair}
    absmax = calibrated(model, batch(name, 4, 12))
    made = LayerMap(layers=chosen, base_dtype=base, input_absmax=absmax)
    made = replace(made, format=format_for(layers, chosen, base, model=model))
    write_checkpoint(model, made, folder / "checkpoint", source=source)
    return model, folder / "checkpoint"


def output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(**inputs)[0].float()


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_written_as_it_is_or_refused(kind: Export, scheme: str, base: str, tmp_path: Path) -> None:
    model, folder = make(tmp_path, "bert", scheme, base)
    layer = inspect(model).layers[-1]
    try:
        export(folder, kind.name, tmp_path / "out")
    except UsageError as error:
        refused = kind.runtime().supports(layer, SCHEMES[scheme]) or (SCHEMES[scheme].dtype or base) != base or base
        assert refused and str(error) and not (tmp_path / "out").exists()
        assert base != "float32" or scheme != "float32"
        return
    stored = load_file(next(folder.glob("*.safetensors")))
    found = {tuple(array.shape): [] for array in CONSTANTS[kind.name](tmp_path / "out")}
    for array in CONSTANTS[kind.name](tmp_path / "out"):
        found[tuple(array.shape)].append(array)
    integers = [name for name, tensor in stored.items() if tensor.dtype == torch.int8 and name.endswith("weight")]
    assert integers or SCHEMES[scheme].is_float
    for name in integers:
        codes = stored[name].numpy()
        same = [array for array in found[codes.shape] if array.dtype == np.int8 and np.array_equal(array, codes)]
        assert len(same) == 1, f"{name}: {len(same)} int8 constants hold its codes"
        scale = stored[f"{name}_scale"].float().numpy().reshape(-1)
        held = [array for array in CONSTANTS[kind.name](tmp_path / "out") if array.size == scale.size]
        assert any(np.array_equal(array.astype(np.float32).reshape(-1), scale) for array in held), (
            f"{name}: other scales"
        )
    loaded, reference = load(tmp_path / "out"), checkpoint.load(folder)
    for rows, positions in ((4, 12), (1, 7), (3, 1)):  # none of them the shape that the graph was recorded with
        inputs = batch("bert", rows, positions)
        ours, theirs, exact = output(loaded, inputs), output(reference, inputs), output(model, inputs)
        assert ours.shape == theirs.shape
        noise = off(theirs, exact) if SCHEMES[scheme].input else 0.0
        assert off(ours, theirs) <= max(noise, 2e-5 if base == "float32" else 2e-2), (rows, positions)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheme", ["int8-channel-sym/a8-token", "int8-channel-asym", "bfloat16"])
def test_every_kind_of_model_is_exported(kind: Export, name: str, scheme: str, tmp_path: Path) -> None:
    base = "bfloat16" if kind.name == "openvino" else "float32"
    model, folder = make(tmp_path, name, base if scheme == "bfloat16" else scheme, base)
    export(folder, kind.name, tmp_path / "out")
    loaded, reference = load(tmp_path / "out"), checkpoint.load(folder)
    for rows, positions in ((2, 11), (5, 4)):
        inputs = batch(name, rows, positions)
        ours, theirs, exact = output(loaded, inputs), output(reference, inputs), output(model, inputs)
        if name in ("gpt2", "llama"):  # what a padded position gives is nobody's business
            keep = inputs["attention_mask"].bool()
            ours, theirs, exact = ours[keep], theirs[keep], exact[keep]
        assert off(ours, theirs) <= max(1.5 * off(theirs, exact), 3e-2)
    assert type(loaded(**inputs)).__name__ == type(model(**inputs)).__name__


def test_the_engine_opens_it_alone_in_a_fresh_process(kind: Export, tmp_path: Path) -> None:
    _, folder = make(tmp_path, "bert", "int8-channel-asym", "float32")
    export(folder, kind.name, tmp_path / "out")
    inputs = batch("bert", 3, 9)
    np.savez(tmp_path / "out" / "inputs.npz", **{key: value.numpy() for key, value in inputs.items()})
    subprocess.run([sys.executable, "-c", ALONE[kind.name], str(tmp_path / "out")], check=True)
    with np.load(tmp_path / "out" / "outputs.npz") as file:
        assert set(file) == {"last_hidden_state", "pooler_output"}
        assert off(torch.from_numpy(file["last_hidden_state"]), output(checkpoint.load(folder), inputs)) < 2e-5


def test_the_folder_is_whole(kind: Export, tmp_path: Path) -> None:
    _, folder = make(tmp_path, "bert", "int8-channel-sym", "float32")
    found = export(folder, kind.name, tmp_path / "out")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"config.json", "tokenizer.json", "layer_map.yaml", kind.file, "1_Pooling/config.json"} <= names
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    assert not any(name.endswith(".safetensors") for name in names)
    assert found["file_bytes"] == weight_bytes(tmp_path / "out") > 0
    assert weight_bytes(folder) == folder_bytes(folder)
    export(folder, kind.name, tmp_path / "out")  # an older export is replaced
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(FolderError):
        export(folder, kind.name, tmp_path / "other")
    with pytest.raises(FolderError):
        export(folder, kind.name, folder)
    with pytest.raises(UsageError, match="an export already"):
        export(tmp_path / "out", kind.name, tmp_path / "again")


def test_a_damaged_export_is_an_error_of_ours(kind: Export, tmp_path: Path) -> None:
    _, folder = make(tmp_path, "bert", "int8-channel-sym", "float32")
    export(folder, kind.name, tmp_path / "out")
    (tmp_path / "out" / kind.file).write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="Export it again"):
        load(tmp_path / "out")


def test_it_says_what_it_needs(kind: Export, tmp_path: Path) -> None:
    _, folder = make(tmp_path, "bert", "int8-channel-sym", "float32")
    export(folder, kind.name, tmp_path / "out")
    loaded = load(tmp_path / "out")
    with pytest.raises(UsageError, match="needs the tensor 'input_ids'"):
        loaded(attention_mask=torch.ones(1, 4))
    with pytest.raises(UsageError, match="does not take 'inputs_embeds'"):
        loaded(**batch("bert", 1, 4), inputs_embeds=torch.ones(1))
    with pytest.raises(UsageError, match="cannot be run with torch"):
        load(tmp_path / "out", runtime="torch")


def test_a_module_of_ones_own_is_exported(kind: Export, tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    model, x = Own().eval(), torch.randn(5, 16)
    made = LayerMap(layers={"first": "int8-channel-sym/a8-token", "second": "float32"}, format="autoquant")
    write_checkpoint(model, made, tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", kind.name, tmp_path / "out", model=Own(), example={"x": torch.randn(3, 16)})
    with torch.inference_mode():
        expected = checkpoint.load(tmp_path / "checkpoint", model=Own())(x)
        assert off(load(tmp_path / "out")(x=x), expected) < 0.01


@pytest.mark.parametrize("name", EXPORTS)
def test_a_missing_extra_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    absent = ("openvino", "onnx", "onnxruntime", "onnxscript")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module in absent else find(module, *rest)
    )
    with pytest.raises(UsageError, match=rf"autoquant-search\[{name}\]"):
        export(tmp_path, name, tmp_path / "out")


def test_unknown_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="openvino"):
        export(tmp_path, "opnvino", tmp_path / "out")


def test_what_an_engine_cannot_run_is_refused_by_name(kind: Export, tmp_path: Path) -> None:
    model, _ = make(tmp_path, "bert", "int8-channel-sym", "float32")
    for scheme in SCHEMES.values():
        layer = inspect(model).layers[-1]
        reason = kind.runtime().supports(layer, scheme)
        if reason is None:
            continue
        with pytest.raises(SchemeError, match=layer.name):
            kind.runtime().build(
                layer, scheme, model.get_submodule(layer.name), torch.ones(layer.shape), base_dtype=torch.float32
            )
