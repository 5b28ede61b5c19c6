"""Layer maps put onto a model in memory, again and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from autoquant.checkpoint import format_for, load, write_checkpoint
from autoquant.errors import LayerMapError, NumericsError
from autoquant.models.layers import inspect
from autoquant.runtimes import TorchRuntime
from autoquant.runtimes.assemble import Assembler
from autoquant.schemes import SCHEMES, project
from autoquant.values import FLOAT_DTYPES, Layer, LayerMap
from tests.maps import assembled
from tests.opened import gpt2, tied_llama, vit

IDS = torch.arange(20).reshape(2, 10)
CHOICES = (
    "int8-channel-sym/a8-token",
    "int8-tensor-asym/a8-tensor",
    "int8-channel-asym/a8-static",
    "int8-channel-sym",
    "float16",
)


def output(model: nn.Module) -> torch.Tensor:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if "ViT" in type(model).__name__:
            return model(pixels.to(model.dtype)).logits
        return model(IDS).logits


@pytest.fixture(params=[tied_llama, gpt2, vit], ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module:
    make: Callable[[Path], nn.Module] = request.param
    return make(tmp_path / "model").eval()


def assembler_of(model: nn.Module) -> Assembler:
    inventory = inspect(model)
    return Assembler(model, inventory, TorchRuntime(), {layer.name: 4.0 for layer in inventory.layers})


def mixed(model: nn.Module, shift: int = 0) -> dict[str, str]:
    """Many schemes at once; tied layers share theirs."""
    chosen: dict[str, str] = {}
    for number, layer in enumerate(inspect(model).layers):
        scheme = CHOICES[(number + shift) % len(CHOICES)]
        if layer.kind == "embedding" or layer.tied_to:
            scheme = "int8-channel-asym"
        chosen[layer.name] = project(SCHEMES[scheme], layer.kind).name
    return chosen


@pytest.mark.parametrize("base", FLOAT_DTYPES)
def test_the_float_model_stays_as_it_was_bit_for_bit(model: nn.Module, base: str) -> None:
    model.train()
    before = {
        name: (tensor, tensor.clone(), tensor.requires_grad)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    modules, dtype = {name: type(m) for name, m in model.named_modules()}, model.config.dtype
    assembler = assembler_of(model)
    output(assembler.assemble(mixed(model), base))
    output(assembler.assemble({}, base))
    for name, tensor in model.state_dict(keep_vars=True).items():
        old, copy, requires_grad = before[name]
        assert tensor is old and torch.equal(tensor, copy) and tensor.requires_grad == requires_grad, name
    assert {name: type(m) for name, m in model.named_modules()} == modules
    assert model.training and model.config.dtype == dtype
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("base", FLOAT_DTYPES)
def test_switching_maps_back_and_forth_changes_nothing(model: nn.Module, base: str) -> None:
    assembler = assembler_of(model)
    one, two = mixed(model), mixed(model, 1)
    first = [output(assembler.assemble(layers, base)).clone() for layers in (one, {}, two)]
    again = [output(assembler.assemble(layers, base)) for layers in (one, {}, two)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    fresh = output(assembler_of(model).assemble(two, base))
    assert torch.equal(fresh, first[2])


def test_forgetting_changes_nothing(model: nn.Module) -> None:
    assembler = assembler_of(model)
    expected = output(assembler.assemble(mixed(model), "float32")).clone()
    assembler.assemble({}, "float32")
    assembler.forget()
    assert torch.equal(output(assembler.assemble(mixed(model), "float32")), expected)


def test_what_is_little_is_not_forgotten(model: nn.Module) -> None:
    """Or the price stage would quantize every weight anew for each of the maps that it measures."""
    assembler = assembler_of(model)
    assembler.assemble(mixed(model), "float32")
    held, modules = assembler.held(), dict(assembler._modules)
    assert held > 0
    assembler.forget(over=held)
    assert assembler._modules == modules and assembler.held() == held
    assembler.forget(over=held - 1)
    assert not assembler._modules and assembler.held() == 0


def test_no_quantization_is_the_float_model(model: nn.Module) -> None:
    assert torch.equal(output(assembler_of(model).assemble({}, "float32")), output(model))


@pytest.mark.parametrize("base", ["bfloat16", "float16"])
def test_no_quantization_in_half_precision_is_the_cast_model(model: nn.Module, base: str) -> None:
    found = assembler_of(model).assemble({}, base)
    assert {p.dtype for p in found.parameters()} == {getattr(torch, base)} == {found.config.dtype}
    expected = output(model)
    assert torch.allclose(output(found).float(), expected, atol=0.1 * float(expected.abs().max()))


@pytest.mark.parametrize("base", FLOAT_DTYPES)
def test_every_layer_runs_what_the_map_names(model: nn.Module, base: str) -> None:
    layers = mixed(model)
    modules = dict(assembler_of(model).assemble(layers, base).named_modules())
    running = {name: getattr(modules[name], "scheme_name", base) for name in layers}
    assert running == layers


@pytest.mark.parametrize("base", FLOAT_DTYPES)
def test_what_is_assembled_is_what_a_checkpoint_holds(model: nn.Module, base: str, tmp_path: Path) -> None:
    layers = mixed(model)
    absmax = {name: 4.0 for name in layers}
    form = format_for(inspect(model).layers, layers, base, model=model)
    layer_map = LayerMap(layers=layers, base_dtype=base, input_absmax=absmax, format=form)
    write_checkpoint(model, layer_map, tmp_path / "out")
    assert torch.equal(output(assembled(model, layer_map)), output(load(tmp_path / "out")))


@pytest.mark.parametrize("base", FLOAT_DTYPES)
@pytest.mark.parametrize("absmax", [0.0, 1e-9])
def test_an_input_that_was_almost_always_zero_has_a_scale(tmp_path: Path, base: str, absmax: float) -> None:
    """A float16 cannot hold 1e-9 / 127.5: the scale must be neither zero nor another one in the checkpoint."""
    model = tied_llama(tmp_path / "model").eval()
    layers = {layer.name: base for layer in inspect(model).layers}
    layers["model.layers.0.mlp.down_proj"] = "int8-channel-sym/a8-static"
    layer_map = LayerMap(layers=layers, base_dtype=base, input_absmax=dict.fromkeys(layers, absmax))
    write_checkpoint(model, layer_map, tmp_path / "out")
    found = output(assembled(model, layer_map))
    assert torch.isfinite(found).all() and torch.equal(found, output(load(tmp_path / "out")))


def test_a_module_in_two_places_is_replaced_in_both(tmp_path: Path) -> None:
    model = tied_llama(tmp_path / "model").eval()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    name = "model.layers.0.mlp.up_proj"
    found = assembler_of(model).assemble({name: "int8-channel-sym"}, "float32")
    first, second = (block.mlp.up_proj for block in found.model.layers)
    assert first is second and first.scheme_name == "int8-channel-sym"
    assert model.model.layers[0].mlp is model.model.layers[1].mlp and type(model.get_submodule(name)) is nn.Linear


def test_tied_layers_are_swapped_one_by_one(tmp_path: Path) -> None:
    model = tied_llama(tmp_path / "model").eval()
    assembler = assembler_of(model)
    plain = assembler.assemble({}, "float32")
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    head = assembler.assemble({"lm_head": "int8-channel-sym/a8-token"}, "float32")
    assert head.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    both = assembler.assemble({"lm_head": "int8-channel-sym", "model.embed_tokens": "int8-channel-sym"}, "float32")
    codes = both.lm_head.weight if both.lm_head.packed is None else both.lm_head.packed.unpack()
    assert torch.equal(codes, both.model.embed_tokens.weight) and codes.dtype == torch.int8


def test_the_float32_copy_shares_its_memory_with_the_original(model: nn.Module) -> None:
    copy = assembler_of(model).assemble({}, "float32")
    pairs = zip(model.parameters(), copy.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() and not b.requires_grad for a, b in pairs)


def test_a_static_scheme_without_a_range_is_refused_by_name(model: nn.Module) -> None:
    assembler = Assembler(model, inspect(model), TorchRuntime())
    name = next(layer.name for layer in inspect(model).layers if layer.kind in ("linear", "conv1d"))
    with pytest.raises(LayerMapError, match=f"{name}.*calibrated range"):
        assembler.assemble({name: "int8-channel-sym/a8-static"}, "float32")


def test_a_layer_that_cannot_be_built_leaves_the_last_map_in_place(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what fails once does not count as built."""
    assembler = assembler_of(model)
    first = output(assembler.assemble({}, "float32"))
    build, last = assembler.runtime.build, inspect(model).layers[-1].name

    def failing(layer: Layer, *args: object, **more: object) -> nn.Module:
        if layer.name == last:
            raise NumericsError("no")
        return build(layer, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(assembler.runtime, "build", failing)
        with pytest.raises(NumericsError):
            assembler.assemble(mixed(model), "float32")
        assert torch.equal(output(assembler.assemble({}, "float32")), first)
    expected = output(assembler_of(model).assemble(mixed(model), "float32"))
    assert torch.equal(output(assembler.assemble(mixed(model), "float32")), expected)
