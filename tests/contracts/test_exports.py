"""What every export promises. A new one joins by being in `EXPORTS` (and in the tables of tests/exports/read.py)."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from exports.read import ALONE, CONSTANTS, INTEGER_PRODUCTS
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification, PreTrainedModel

from autoquant import checkpoint
from autoquant.artifacts import folder_bytes
from autoquant.checkpoint import format_for, write_checkpoint
from autoquant.errors import AutoquantError, CheckpointError, FolderError, SchemeError, UsageError
from autoquant.exports import EXPORTS, Export, export, load, weight_bytes
from autoquant.models.layers import inspect
from autoquant.schemes import SCHEMES, project
from autoquant.values import LayerMap
from tests.maps import some_outliers

MODELS = {
    "bert": (tiny.bert, AutoModel),
    "gpt2": (tiny.gpt2, AutoModelForCausalLM),
    "llama": (tiny.llama, AutoModelForCausalLM),
    "vit": (tiny.vit, AutoModelForImageClassification),
}
BASES = ("float32", "bfloat16")
INTEGER = tuple(name for name, scheme in SCHEMES.items() if not scheme.is_float and not scheme.is_packed)
"""Packed weights are the same codes to an engine: some of them stand for all."""


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


def make(folder: Path, name: str, kind: Export | None, base: str) -> tuple[PreTrainedModel, Path]:
    """A tiny float model, and a checkpoint of it with every scheme that the engine can run (None: floats only) in turns."""
    writer, auto = MODELS[name]
    source = writer(folder / "float")
    model = auto.from_pretrained(source).eval()
    layers = inspect(model).layers
    chosen = {layer.name: base for layer in layers}
    for number, layer in enumerate(layers if kind is not None else ()):
        usable = [n for n, s in SCHEMES.items() if not s.is_float and kind.runtime().supports(layer, s) is None]
        chosen[layer.name] = usable[5 * number % len(usable)]
    for layer in layers:
        if layer.tied_to is not None:
            chosen[layer.name] = chosen[layer.tied_to] = "int8-channel-sym"
    absmax = calibrated(model, batch(name, 4, 12))
    made = LayerMap(layers=chosen, base_dtype=base, input_absmax=absmax, outliers=some_outliers(layers))
    made = replace(made, format=format_for(layers, chosen, base, model=model))
    write_checkpoint(model, made, folder / "checkpoint", source=source)
    return model, folder / "checkpoint"


def output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(**inputs)[0].float()


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


class Own(nn.Module):
    """No transformers model: rows of a table, two products."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(40, 64), nn.Linear(64, 72), nn.Linear(72, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.table(ids))))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("scheme", [*INTEGER, "int6-channel-sym", "int4-channel-asym", "int4-channel-sym/a8-token"])
def test_every_scheme_is_written_as_it_is_or_refused(kind: Export, scheme: str, base: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Own().eval(), torch.randint(0, 40, (5, 11))
    table = project(SCHEMES[scheme], "embedding").name
    table = table if "channel" in table else base
    made = LayerMap(
        layers={"table": table, "first": scheme, "second": scheme}, base_dtype=base, format="autoquant",
        input_absmax=dict.fromkeys(("first", "second"), 3.0), outliers=some_outliers(inspect(model).layers),
    )  # fmt: skip
    write_checkpoint(model, made, tmp_path / "checkpoint")
    out, example = tmp_path / "out", {"ids": ids[:2]}
    refused = kind.runtime().supports(inspect(model).layer("first"), SCHEMES[scheme])
    if refused:
        with pytest.raises(AutoquantError, match=re.escape(refused)):
            export(tmp_path / "checkpoint", kind.name, out, model=Own(), example=example)
        assert not out.exists()
        return
    export(tmp_path / "checkpoint", kind.name, out, model=Own(), example=example)
    stored, constants = load_file(tmp_path / "checkpoint" / "autoquant.safetensors"), CONSTANTS[kind.name](out)
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8:
            codes = tensor.numpy()
            same = [item for item in constants if item.dtype == np.int8 and item.size == codes.size]
            assert any(np.array_equal(item.reshape(codes.shape), codes) for item in same), name
        elif name.endswith("scale") and not name.endswith("input_scale"):
            values = tensor.float().numpy().reshape(-1)
            assert any(np.array_equal(item.astype(np.float32).reshape(-1), values) for item in constants), name
    assert INTEGER_PRODUCTS[kind.name](out) == (2 if SCHEMES[scheme].input else 0)
    loaded, reference = load(out), checkpoint.load(tmp_path / "checkpoint", model=Own())
    with torch.inference_mode():
        for inputs in (ids, ids[:1, :3], ids[:3, :1]):  # none of them the shape that the graph was recorded with
            ours, theirs, exact = loaded(ids=inputs), reference(inputs).float(), model(inputs)
            close = 2e-5 if base == "float32" else 2e-2
            assert off(ours, theirs) <= max(close, off(theirs, exact) if SCHEMES[scheme].input else 0.0)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_is_exported_with_many_schemes(kind: Export, name: str, tmp_path: Path) -> None:
    model, folder = make(tmp_path, name, kind, "bfloat16")
    export(folder, kind.name, tmp_path / "out")
    loaded, reference = load(tmp_path / "out"), checkpoint.load(folder)
    for rows, positions in ((3, 11), (1, 4)):
        inputs = batch(name, rows, positions)
        ours, theirs, exact = output(loaded, inputs), output(reference, inputs), output(model, inputs)
        if name in ("gpt2", "llama"):  # what a padded position gives is nobody's business
            keep = inputs["attention_mask"].bool()
            ours, theirs, exact = ours[keep], theirs[keep], exact[keep]
        assert ours.shape == theirs.shape
        assert off(ours, theirs) <= max(1.5 * off(theirs, exact), 3e-2)
    assert type(loaded(**inputs)).__name__ == type(model(**inputs)).__name__
    text = (tmp_path / "out" / kind.file).read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in text and b"site-packages" not in text


@pytest.mark.parametrize("base", BASES)
def test_a_float_checkpoint_is_exported(kind: Export, base: str, tmp_path: Path) -> None:
    _, folder = make(tmp_path, "bert", None, base)
    export(folder, kind.name, tmp_path / "out")
    inputs = batch("bert", 3, 9)
    found = off(output(load(tmp_path / "out"), inputs), output(checkpoint.load(folder), inputs))
    assert found < (2e-5 if base == "float32" else 3e-2)
    assert weight_bytes(tmp_path / "out") < 1.6 * folder_bytes(folder)


def test_the_engine_opens_it_alone_in_a_fresh_process(kind: Export, tmp_path: Path) -> None:
    model, folder = make(tmp_path, "bert", kind, "float32")
    export(folder, kind.name, tmp_path / "out")
    inputs = batch("bert", 3, 9)
    np.savez(tmp_path / "out" / "inputs.npz", **{key: value.numpy() for key, value in inputs.items()})
    subprocess.run([sys.executable, "-c", ALONE[kind.name], str(tmp_path / "out")], check=True)
    with np.load(tmp_path / "out" / "outputs.npz") as file:
        assert set(file) == {"last_hidden_state", "pooler_output"}
        found = torch.from_numpy(file["last_hidden_state"])
    assert off(found, output(load(tmp_path / "out"), inputs)) < 2e-5
    theirs = output(checkpoint.load(folder), inputs)
    assert off(found, theirs) < off(theirs, output(model, inputs))


def test_the_folder_is_whole(kind: Export, tmp_path: Path) -> None:
    _, folder = make(tmp_path, "bert", kind, "float32")
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


@pytest.mark.parametrize(
    "scheme",
    ["int8-channel-sym/a8-token", "int8-channel-sym/a8-outlier", "int8-channel-sym/a8-static", "int8-channel-sym"],
)
def test_values_that_are_not_finite_do_not_come_out_as_numbers(kind: Export, scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 72), nn.GELU(), nn.Linear(72, 6)).eval()
    made = LayerMap(
        layers=dict.fromkeys(("0", "2"), scheme), base_dtype="float32", format="autoquant",
        input_absmax=dict.fromkeys(("0", "2"), 3.0), outliers=some_outliers(inspect(model).layers),
    )  # fmt: skip
    write_checkpoint(model, made, tmp_path / "checkpoint")
    x = torch.randn(4, 64)
    export(tmp_path / "checkpoint", kind.name, tmp_path / "out", model=model, example={"input": x})
    loaded = load(tmp_path / "out")
    clean = loaded(input=x)
    for bad, place in itertools.product((torch.nan, torch.inf, -torch.inf), (3, 4)):  # 4 is an outlier channel
        spoilt = x.clone()
        spoilt[2, place] = bad
        found = loaded(input=spoilt)
        assert not bool(found[2].isfinite().any()) and torch.equal(found[[0, 1, 3]], clean[[0, 1, 3]])


def test_a_damaged_export_is_an_error_of_ours(kind: Export, tmp_path: Path) -> None:
    _, folder = make(tmp_path, "bert", kind, "float32")
    export(folder, kind.name, tmp_path / "out")
    (tmp_path / "out" / kind.file).write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="Export it again"):
        load(tmp_path / "out")


def test_it_says_what_it_needs(kind: Export, tmp_path: Path) -> None:
    _, folder = make(tmp_path, "bert", kind, "float32")
    export(folder, kind.name, tmp_path / "out")
    loaded = load(tmp_path / "out")
    with pytest.raises(UsageError, match="needs the tensor 'input_ids'"):
        loaded(attention_mask=torch.ones(1, 4))
    with pytest.raises(UsageError, match="does not take 'inputs_embeds'"):
        loaded(**batch("bert", 1, 4), inputs_embeds=torch.ones(1))
    with pytest.raises(UsageError, match="cannot run this batch"):
        loaded(**{name: torch.ones((1, 4, 2), dtype=torch.long) for name in batch("bert", 1, 4)})
    with pytest.raises(UsageError, match="cannot be run with torch"):
        load(tmp_path / "out", runtime="torch")


def test_tied_codes_are_stored_once(kind: Export, tmp_path: Path) -> None:
    _, folder = make(tmp_path, "gpt2", kind, "float32")
    export(folder, kind.name, tmp_path / "out")
    sizes = [item.size for item in CONSTANTS[kind.name](tmp_path / "out") if item.dtype == np.int8]
    assert sizes.count(132 * tiny.WIDTH) == (1 if kind.name == "openvino" else 2)  # onnx_constants gives each twice


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
    model, _ = make(tmp_path, "bert", kind, "float32")
    for scheme in SCHEMES.values():
        layer = inspect(model).layers[-1]
        reason = kind.runtime().supports(layer, scheme)
        if reason is None:
            continue
        with pytest.raises(SchemeError, match=layer.name):
            kind.runtime().build(
                layer, scheme, model.get_submodule(layer.name), torch.ones(layer.shape), base_dtype=torch.float32
            )
