"""Where a model can be smoothed is found and proved; by how much is measured."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from autoquant.models.layers import inspect
from autoquant.models.smoothed import smoothed
from autoquant.schemes import SCHEMES, quantize_input
from autoquant.smoothing import find_smoothing
from autoquant.smoothing.find import find_pairs
from autoquant.tasks import Task, make
from autoquant.values import Smoothing
from tests import tiny
from tests.opened import bert, gpt2, tied_llama, vit

IDS = torch.arange(20).reshape(2, 10)
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def logits(model: nn.Module) -> torch.Tensor:
    if "ViT" in type(model).__name__:
        return model(PIXELS).logits
    found = model(IDS)
    return found.logits if "logits" in found else found.last_hidden_state


def pairs_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Of the first block, by the last parts of the names."""
    found = find_pairs(model, inspect(model).layers, logits)
    short = {pair.source: tuple(name.rpartition(".")[2] for name in pair.layers) for pair in found}
    assert len(found) == len(short)
    return {name.split(".0.")[1]: layers for name, layers in short.items() if ".0." in name}


@pytest.mark.parametrize(
    ("make_model", "expected"),
    [
        (
            tied_llama,
            {
                "input_layernorm": ("q_proj", "k_proj", "v_proj"),
                "post_attention_layernorm": ("gate_proj", "up_proj"),
                "self_attn.v_proj": ("o_proj",),
                "mlp.up_proj": ("down_proj",),
            },
        ),
        (gpt2, {"ln_1": ("c_attn",), "ln_2": ("c_fc",)}),  # what is between c_fc and c_proj is GELU
        (bert, {"attention.self.value": ("dense",)}),  # the norms are read by the residuals, too
    ],
    ids=["llama", "gpt2", "bert"],
)
def test_pairs_that_change_nothing_are_found(
    make_model: Callable[[Path], nn.Module], expected: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    assert pairs_of(make_model(tmp_path / "model").eval()) == expected


def test_pre_norm_images(tmp_path: Path) -> None:
    found = pairs_of(vit(tmp_path / "vit").eval())
    assert len(found) == 3 and sorted(map(len, found.values())) == [1, 1, 3]


class Gemma(nn.Module):
    """Multiplies by 1 + weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, (8,)) * (1 + self.weight)


class Block(nn.Module):
    def __init__(self, norm: nn.Module, between: nn.Module) -> None:
        super().__init__()
        self.norm, self.between = norm, between
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.between(self.first(self.norm(x))))


@pytest.mark.parametrize(
    ("norm", "between", "expected"),
    [
        (nn.LayerNorm(8), nn.GELU(), {"norm"}),
        (nn.RMSNorm(8), nn.ReLU(), {"norm", "first"}),  # ReLU commutes with positive factors
        (nn.LayerNorm(8), nn.Identity(), {"norm", "first"}),
        (Gemma(), nn.Tanh(), set()),
    ],
    ids=["gelu", "relu", "linear", "one plus weight"],
)
def test_only_what_was_proved(norm: nn.Module, between: nn.Module, expected: set[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(blocks=nn.Sequential(Block(norm, between)))).eval()
    x = torch.randn(5, 8)
    found = find_pairs(model, inspect(model).layers, lambda m: m(x))
    assert {pair.source.removeprefix("blocks.0.") for pair in found} == expected


def test_a_tied_layer_is_left_alone() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    model[2].weight = model[1].weight
    x = torch.randn(5, 8)
    assert find_pairs(model, inspect(model).layers, lambda m: m(x)) == []


@pytest.fixture
def job(tmp_path: Path) -> tuple[nn.Module, Task]:
    """A language model with outliers in three channels of every norm, and texts."""
    model = tied_llama(tmp_path / "llama").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layernorm.weight"):
                parameter[:3] *= 60
    (tmp_path / "texts.txt").write_text("\n".join(tiny.texts(300)), encoding="utf8")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    return model, make("causal-lm", tmp_path / "texts.txt", tokenizer, model=model, max_length=16)


def int8_error(model: nn.Module, name: str, batch) -> float:
    """Relative error of a layer's input in int8, one scale a token."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        model(batch["input_ids"])
    hook.remove()
    args = SCHEMES["int8-channel-sym/a8-token"].input
    assert args is not None
    codes, scale = quantize_input(seen[0], args)
    weight = model.get_submodule(name).weight.detach()
    exact = seen[0] @ weight.T
    return float(torch.linalg.vector_norm((codes * scale) @ weight.T - exact) / torch.linalg.vector_norm(exact))


def test_outliers_move_into_the_weights(job: tuple[nn.Module, Task]) -> None:
    model, task = job
    found = find_smoothing(model, task, inspect(model).layers)
    by_source = {scaling.source: scaling for scaling in found.smoothing}
    assert found.pairs == 8 and found.error_left < 0.5
    norm = by_source["model.layers.0.input_layernorm"]
    assert min(norm.exponents[:3]) > max(norm.exponents[3:])  # the outliers are divided by more
    better, batch = smoothed(model, found.smoothing), task.batch("calibration", [0, 1, 2, 3])
    with torch.inference_mode():
        assert torch.equal(task.forward(better, batch), task.forward(model, batch))
    for name in norm.layers:
        assert int8_error(better, name, batch) < 0.5 * int8_error(model, name, batch)


def test_the_same_seed_finds_the_same(job: tuple[nn.Module, Task]) -> None:
    model, task = job
    layers = inspect(model).layers
    assert find_smoothing(model, task, layers).to_dict() == find_smoothing(model, task, layers).to_dict()


def test_dead_channels_stay(job: tuple[nn.Module, Task]) -> None:
    model, task = job
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[5:9] = 0
    found = find_smoothing(model, task, inspect(model).layers)
    norm = next(s for s in found.smoothing if s.source == "model.layers.0.input_layernorm")
    assert isinstance(norm, Smoothing) and set(norm.exponents[5:9]) == {0}
