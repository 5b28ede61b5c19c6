"""Bytes are those of the checkpoint; every choice has a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    BertConfig,
    BertForMaskedLM,
)

from autoquant.checkpoint import format_for, write_checkpoint
from autoquant.models.layers import inspect
from autoquant.models.loading import load_model
from autoquant.price import latency, measure_price
from autoquant.runtimes import TorchRuntime
from autoquant.runtimes.assemble import Assembler
from autoquant.schemes import SCHEMES, computed_as, project
from autoquant.tasks import make
from autoquant.values import FLOAT_DTYPES, LayerMap, Price
from tests import tiny
from tests.maps import promised_bytes, some_outliers

RUNTIME = TorchRuntime()
INTEGER = tuple(name for name, scheme in SCHEMES.items() if not scheme.is_float)


def masked(folder: Path) -> nn.Module:
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    return BertForMaskedLM(config)


MODELS: dict[str, Callable[[Path], nn.Module]] = {
    "bert": lambda folder: AutoModel.from_pretrained(tiny.bert(folder)),
    "llama": lambda folder: AutoModelForCausalLM.from_pretrained(tiny.llama(folder)),
    "llama-tied": lambda folder: AutoModelForCausalLM.from_pretrained(tiny.llama(folder, tied=True)),
    "gpt2": lambda folder: AutoModelForCausalLM.from_pretrained(tiny.gpt2(folder)),
    "vit": lambda folder: AutoModelForImageClassification.from_pretrained(tiny.vit(folder)),
    "masked-lm": masked,
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module:
    return MODELS[request.param](tmp_path / "model").eval()


def allowed(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return {x.name: tuple(s for s in INTEGER if RUNTIME.supports(x, SCHEMES[s]) is None) for x in inspect(model).layers}


def maps(model: nn.Module, base: str) -> list[dict[str, str]]:
    """No quantization, and two maps of many schemes; tied layers share theirs."""
    layers, schemes = inspect(model).layers, allowed(model)
    for owner in {layer.tied_to for layer in layers if layer.tied_to}:
        schemes[owner] = tuple(
            name for name in schemes[owner] if not SCHEMES[name].is_packed
        )  # readers tie weights only
    found = [{layer.name: base for layer in layers}]
    for shift in (0, 5):
        chosen = {}
        for number, layer in enumerate(layers):
            options = schemes[layer.tied_to or layer.name]
            chosen[layer.name] = (
                base if (number + shift) % 4 == 3 and not layer.tied_to else options[(number + shift) % len(options)]
            )
            if layer.tied_to:
                chosen[layer.name] = project(SCHEMES[chosen[layer.tied_to]], layer.kind).name
        found.append(chosen)
    return found


@pytest.mark.parametrize("base", FLOAT_DTYPES)
def test_bytes_are_those_of_the_checkpoint(model: nn.Module, base: str, tmp_path: Path) -> None:
    inventory = inspect(model)
    for number, layers in enumerate(maps(model, base)):
        form = format_for(inventory.layers, layers, base, model=model)
        absmax = dict.fromkeys(layers, 3.0)
        layer_map = LayerMap(
            layers=layers,
            base_dtype=base,
            input_absmax=absmax,
            outliers=some_outliers(inspect(model).layers),
            format=form,
        )
        written = write_checkpoint(model, layer_map, tmp_path / str(number))
        assert promised_bytes(model, layer_map) == written["payload_bytes"]


@pytest.mark.parametrize("kept", ["LayerNorm", "query"])
def test_bytes_of_modules_that_stay_in_float32(tmp_path: Path, kept: str) -> None:
    model = MODELS["bert"](tmp_path / "model").eval()
    model._keep_in_fp32_modules = [kept]
    layers = {layer.name: "float16" for layer in inspect(model).layers}
    layer_map = LayerMap(layers=layers, base_dtype="float16")
    written = write_checkpoint(model, layer_map, tmp_path / "out")
    assert promised_bytes(model, layer_map) == written["payload_bytes"]


def test_a_weight_that_two_norms_share_is_paid_once(tmp_path: Path) -> None:
    model = MODELS["llama"](tmp_path / "model").eval()
    first, second = (block.input_layernorm for block in model.model.layers)
    second.weight = first.weight
    layers = {layer.name: "bfloat16" for layer in inspect(model).layers}
    layer_map = LayerMap(layers=layers, base_dtype="bfloat16")
    written = write_checkpoint(model, layer_map, tmp_path / "out")
    assert promised_bytes(model, layer_map) == written["payload_bytes"]


def measured(folder: Path) -> tuple[Price, dict[str, tuple[str, ...]]]:
    loaded = load_model(str(tiny.bert(folder / "model")), "AutoModel")
    (folder / "data.csv").write_text("text\n" + "\n".join(tiny.texts(80)))
    sizes = {"calibration": 8, "search": 8, "certification": 40}
    task = make("fidelity", folder / "data.csv", loaded.processor, model=loaded.model, sizes=sizes)
    inventory, schemes = inspect(loaded.model), allowed(loaded.model)
    schemes = {name: row[::5] for name, row in schemes.items()}
    absmax = dict.fromkeys(schemes, 3.0)
    assembler = Assembler(loaded.model, inventory, RUNTIME, absmax)
    price = measure_price(
        loaded.model, task, inventory, assembler, schemes, FLOAT_DTYPES, batch_size=3, seq_len=7, max_seconds=1.0
    )
    return price, schemes


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Price, dict[str, tuple[str, ...]]]:
    return measured(tmp_path_factory.mktemp("price"))


def test_schemes_of_one_kernel_have_one_price(priced: tuple[Price, dict[str, tuple[str, ...]]]) -> None:
    """Timed apart, noise would choose between them."""
    price, _ = priced
    pairs = 0
    for times in (*price.layer_ms.values(), *price.layer_ms_noise.values()):
        for layer, row in times.items():
            for one, other in itertools.combinations(row, 2):
                if computed_as(SCHEMES[one]) is computed_as(SCHEMES[other]):
                    pairs += 1
                    assert row[one] == row[other], (layer, one, other)
    assert pairs


def test_a_base_dtype_is_judged_by_what_would_serve_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by how transformers runs it; and by the better of its float model and its int8 products."""
    plain = {"float32": 10.0, "bfloat16": 99.0, "float16": 10.0}
    served = {"float32": 10.0, "bfloat16": 20.0, "float16": 41.0}
    typical = {"float32": 8.0, "bfloat16": 8.0}
    answers = iter([plain, served, typical])

    def time_bases(calls: dict, seconds: float) -> dict[str, float]:
        found = next(answers)
        assert calls.keys() == found.keys()  # the typical map of an emulated dtype is not even tried
        return dict(found)

    monkeypatch.setattr(RUNTIME, "has_kernels", lambda dtype, device: True, raising=False)
    monkeypatch.setattr(latency, "_time_bases", time_bases)
    monkeypatch.setattr(latency, "_time_maps", lambda assembler, base, maps, *rest: [8.0] * len(maps))
    price, _ = measured(tmp_path)
    assert set(price.layer_ms) == {"float32", "bfloat16"}
    assert price.served_ms == {"float32": 8.0, "bfloat16": 8.0, "float16": 41.0}
    assert price.model_ms == plain


def test_a_base_dtype_without_kernels_is_served_only_where_it_is_not_far_slower_already() -> None:
    plain = {"float32": 40.0, "bfloat16": 20.0, "float16": 20.0 * latency.HOPELESS}
    served = {"float32", "bfloat16"}
    assert set(latency._worth_serving(plain, ["float32", "bfloat16"])) == served | {"float16"}
    plain["float16"] += 0.1
    assert set(latency._worth_serving(plain, ["float32", "bfloat16"])) == served
    assert set(latency._worth_serving(plain, list(plain))) == set(plain)
    assert latency._worth_serving({"float16": 3.0}, []) == ["float16"]


def test_a_base_dtype_that_is_not_served_is_measured_as_transformers_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([
        {"float32": 10.0, "bfloat16": 6.0, "float16": 9.0}, {"float32": 10.0, "bfloat16": 5.0}, {"float32": 4.0, "bfloat16": 3.0},
    ])  # fmt: skip

    def time_bases(calls: dict, seconds: float) -> dict[str, float]:
        found = next(answers)
        assert calls.keys() == found.keys()
        return dict(found)

    monkeypatch.setattr(RUNTIME, "has_kernels", lambda dtype, device: dtype != "float16", raising=False)
    monkeypatch.setattr(latency, "_time_bases", time_bases)
    monkeypatch.setattr(latency, "_time_maps", lambda assembler, base, maps, *rest: [3.0] * len(maps))
    price, _ = measured(tmp_path)
    assert set(price.layer_ms) == {"float32", "bfloat16"}
    assert price.served_ms == {"float32": 4.0, "bfloat16": 3.0, "float16": 9.0} and price.model_ms["float16"] == 9.0


def test_every_choice_has_a_finite_time_and_bytes(priced: tuple[Price, dict[str, tuple[str, ...]]]) -> None:
    price, schemes = priced
    assert set(price.model_ms) == set(price.served_ms) == set(FLOAT_DTYPES) and "float32" in price.layer_ms
    for base, table in price.layer_ms.items():
        assert table.keys() == schemes.keys() == price.layer_ms_noise[base].keys() == price.layer_bytes[base].keys()
        for name, row in table.items():
            assert row.keys() == {base, *schemes[name]} == price.layer_ms_noise[base][name].keys()
            assert price.layer_bytes[base][name].keys() >= row.keys()
            assert all(math.isfinite(ms) and ms >= 0 for ms in row.values())
            assert all(size > 0 for size in price.layer_bytes[base][name].values())
        assert math.isfinite(price.base_ms[base])
    assert all(math.isfinite(ms) and ms > 0 for ms in price.model_ms.values())


def test_a_price_says_what_it_holds_for(priced: tuple[Price, dict[str, tuple[str, ...]]]) -> None:
    price, _ = priced
    assert price.shape == {"batch_size": 3, "seq_len": 7} and price.threads == torch.get_num_threads()
    assert price.runtime == "torch" and price.hardware == RUNTIME.description()
    assert Price.from_dict(price.to_dict()) == price


def test_layers_of_the_same_geometry_have_the_same_time(priced: tuple[Price, dict[str, tuple[str, ...]]]) -> None:
    table = priced[0].layer_ms["float32"]
    assert table["encoder.layer.0.attention.self.query"] == table["encoder.layer.1.attention.self.value"]


def test_totals_add_up(priced: tuple[Price, dict[str, tuple[str, ...]]]) -> None:
    price, schemes = priced
    layers = {name: row[0] for name, row in schemes.items()}
    assert price.bytes_of("float32", layers) == price.other_bytes["float32"] + sum(
        price.layer_bytes["float32"][name][scheme] for name, scheme in layers.items()
    )
    floats = dict.fromkeys(schemes, "float32")
    whole = sum(row["float32"] for row in price.layer_ms["float32"].values()) + price.base_ms["float32"]
    assert price.ms_of("float32", floats) == pytest.approx(whole)


def test_a_busy_machine_shows_in_the_spread_of_the_same_kernel(
    priced: tuple[Price, dict[str, tuple[str, ...]]],
) -> None:
    price, _ = priced
    times = {
        base: {name: dict.fromkeys(row, 2.0) for name, row in table.items()} for base, table in price.layer_ms.items()
    }

    def unrest(share: float) -> float:
        noise = {b: {n: dict.fromkeys(row, 2.0 * share) for n, row in table.items()} for b, table in times.items()}
        return replace(price, layer_ms=times, layer_ms_noise=noise).unrest

    assert unrest(0.05) == pytest.approx(0.05) and unrest(0.4) == pytest.approx(0.4)
    assert 0 < price.unrest < math.inf
    assert math.isnan(replace(price, layer_ms_noise={}).unrest)
