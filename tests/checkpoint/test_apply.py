"""A map that does not fit is refused with all that is wrong; layer_map.yaml is read and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autoquant.checkpoint import apply_map, format_for, read_layer_map, write_layer_map
from autoquant.checkpoint.targets import match, targets
from autoquant.errors import CheckpointError, LayerMapError, SchemeError
from autoquant.models.layers import fingerprint_architecture, fingerprint_model, inspect
from autoquant.values import LayerMap

from .conftest import make_map


def _with(layer_map: LayerMap, **layers: str) -> LayerMap:
    return replace(layer_map, layers={**layer_map.layers, **{k.replace("__", "."): v for k, v in layers.items()}})


def test_names_that_do_not_match_are_all_listed_with_the_nearest(bert: nn.Module) -> None:
    good = make_map(bert)
    layers = {
        name.replace("layer.3.output.dense", "layer.3.output.dens"): scheme for name, scheme in good.layers.items()
    }
    with pytest.raises(LayerMapError) as error:
        apply_map(bert, replace(good, layers={**layers, "nonsense": "float32"}))
    text = str(error.value)
    assert "did you mean 'bert.encoder.layer.3.output.dense'" in text
    assert "nonsense: in the map, not in the model" in text
    assert "bert.encoder.layer.3.output.dense: in the model, not in the map" in text


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ({"bert__embeddings__word_embeddings": "int8-channel-sym/a8-token"}, "write int8-channel-sym"),
        ({"bert__embeddings__word_embeddings": "int8-tensor-sym"}, "per row"),
        ({"classifier": "int8-channel-sym/a8-static"}, "input_absmax"),
        ({"classifier": "float16"}, "set 'format: autoquant'"),
    ],
)
def test_schemes_that_a_layer_cannot_have(bert: nn.Module, layers: dict[str, str], reason: str) -> None:
    with pytest.raises(LayerMapError, match=reason):
        apply_map(bert, _with(make_map(bert), **layers))


@pytest.mark.parametrize(
    "channels", [None, (), range(15), (*range(15), 14), (*range(15), 96), (*range(15), -1), range(80)], ids=str
)
def test_outlier_channels_must_be_some_of_the_inputs(channels: Sequence[int] | None) -> None:
    model = nn.Sequential(nn.Linear(96, 8))
    layer_map = make_map(model, "int8-channel-sym/a8-outlier")
    with pytest.raises(
        LayerMapError, match=r"'outliers', 16, 32, 48 or 64 different numbers below 96; or write a8-token"
    ):
        apply_map(model, layer_map if channels is None else replace(layer_map, outliers={"0": tuple(channels)}))
    assert apply_map(model, replace(layer_map, outliers={"0": tuple(range(16))})) == ()


def test_outlier_channels_in_a_file(tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Linear(96, 8)), tmp_path / "layer_map.yaml"
    layer_map = replace(make_map(model, "int8-channel-sym/a8-outlier"), outliers={"0": tuple(range(3, 35))})
    write_layer_map(path, layer_map)
    assert read_layer_map(path) == layer_map
    assert "\n  '0': 3 4 5 6 7 " in path.read_text()
    path.write_text(path.read_text().replace(" 4 ", " four "))
    with pytest.raises(LayerMapError, match="'outliers' of 0 must be channel numbers, such as '3 17 40'"):
        read_layer_map(path)


def test_tied_layers_need_the_same_weights(llama: nn.Module) -> None:
    with pytest.raises(LayerMapError, match=r"shares its weight with model.embed_tokens"):
        apply_map(llama, _with(make_map(llama), lm_head="int8-channel-asym"))
    assert apply_map(llama, _with(make_map(llama), lm_head="int8-channel-sym/a8-token")) == ()


def test_another_model_is_a_note(bert: nn.Module) -> None:
    layers = inspect(bert).layers
    made_on = {"fingerprint": fingerprint_model(bert), "architecture": fingerprint_architecture(layers)}
    layer_map = replace(make_map(bert), model=made_on)
    assert apply_map(bert, layer_map) == ()
    with torch.no_grad():
        bert.classifier.weight += 1
    assert "certify" in apply_map(bert, layer_map)[0]


def test_formats_are_chosen_by_what_they_can_hold(bert: nn.Module, gpt2: nn.Module, llama: nn.Module) -> None:
    for model, changes, expected in (
        (bert, {}, "compressed-tensors"),
        (bert, {"classifier": "float16"}, "autoquant"),
        (gpt2, {}, "compressed-tensors"),
        (gpt2, {"transformer.h.0.mlp.c_fc": "int8-channel-sym"}, "autoquant"),
        (llama, {"lm_head": "int8-channel-sym", "model.embed_tokens": "int8-channel-sym"}, "compressed-tensors"),
    ):
        assert format_for(inspect(model).layers, changes, "float32") == expected


def test_patterns_match_exactly_the_layers_they_name(bert: nn.Module) -> None:
    names = ["bert.encoder.layer.1.output.dense", "bert.encoder.layer.10.output.dense", "classifier"]
    patterns = targets(names, bert)
    assert patterns == [r"re:(bert\.)?encoder\.layer\.(1|10)\.output\.dense$", "re:classifier$"]
    assert [name for name, module in bert.named_modules() if match(name, module, patterns)] == names
    bare = [name.removeprefix("bert.") for name in names[:2]]
    assert [name for name, module in bert.bert.named_modules() if match(name, module, patterns)] == bare
    assert targets(bare, bert.bert) == patterns[:1]


def test_layer_map_files(bert: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "layer_map.yaml"
    layer_map = make_map(bert, "int8-channel-sym/a8-static")
    write_layer_map(path, layer_map)
    text = path.read_text()
    assert read_layer_map(path) == layer_map == read_layer_map(tmp_path)
    assert text.startswith("# Layer map of autoquant") and "\n  classifier: int8-channel-sym/a8-static\n" in text
    path.write_text(text.replace("classifier: int8-channel-sym", "classifier: int8-chanel-sym"))
    with pytest.raises(SchemeError, match="Did you mean 'int8-channel-sym/a8-static'"):
        read_layer_map(path)
    path.write_text("- a list")
    with pytest.raises(CheckpointError, match="mapping"):
        read_layer_map(path)
    with pytest.raises(LayerMapError, match="no layer map"):
        read_layer_map(tmp_path / "none.yaml")
