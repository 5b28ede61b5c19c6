"""Tiny real models, and maps that use many schemes on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from autoquant.checkpoint import format_for
from autoquant.models.layers import inspect
from autoquant.values import LayerMap

IDS = torch.arange(20).reshape(2, 10)


@pytest.fixture
def bert() -> nn.Module:
    torch.manual_seed(0)
    # Eleven blocks: a pattern for layer 1 must not match layer 10.
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 11, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=40, max_position_embeddings=16, **sizes)).eval()


@pytest.fixture
def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, tie_word_embeddings=True, **sizes)).eval()


@pytest.fixture
def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4)).eval()


@pytest.fixture
def dinov2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2}
    return Dinov2ForImageClassification(Dinov2Config(image_size=28, patch_size=14, num_labels=3, **sizes)).eval()


@pytest.fixture
def t5() -> nn.Module:
    """In a float16 model its layers `wo` stay in float32; encoder, decoder and head share their embedding."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=40, decoder_start_token_id=0, **sizes)).eval()


class Tower(nn.Module):
    """A module that transformers knows nothing of: a convolution, a buffer that is stored and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Linear(8, 6)
        self.second = nn.Linear(6, 8, bias=False)
        self.second.weight = nn.Parameter(torch.randn(8, 6))
        self.third = nn.Linear(6, 8, bias=False)
        self.third.weight = self.second.weight
        self.register_buffer("shift", torch.randn(8), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patches(pixels)).flatten(2).mean(-1)
        x = torch.relu(self.first(x + self.shift.to(x.dtype)))
        return self.second(x) - 2 * self.third(x)


@pytest.fixture
def tower() -> nn.Module:
    torch.manual_seed(0)
    return Tower().eval()


@pytest.fixture
def map_of() -> Callable[..., LayerMap]:
    return make_map


def make_map(model: nn.Module, scheme: str = "int8-channel-sym", base: str = "float32", **other: str) -> LayerMap:
    """`scheme` on every layer (its weight part on embeddings), but what `other` says of names that end in a key.

    Convolutions and GPT-2's layers stay in the base dtype unless named.
    """
    layers = {}
    for layer in inspect(model).layers:
        chosen = {"linear": scheme, "embedding": scheme.split("/")[0]}.get(layer.kind, base)
        ends = [value for key, value in other.items() if layer.name.endswith(key.replace("__", "."))]
        layers[layer.name] = ends[0] if ends else chosen
    return LayerMap(
        layers=layers,
        base_dtype=base,
        input_absmax={name: 4.0 for name, value in layers.items() if value.endswith("static")},
        format=format_for(inspect(model).layers, layers, base, model=model),
    )


def output(model: nn.Module) -> torch.Tensor:
    """Logits (float32) on fixed inputs."""
    torch.manual_seed(1)
    pixels = {"Dinov2ForImageClassification": torch.randn(2, 3, 28, 28), "Tower": torch.randn(2, 3, 8, 8)}
    inputs = pixels.get(type(model).__name__, IDS)
    more = {"decoder_input_ids": IDS} if type(model).__name__ == "T5ForConditionalGeneration" else {}
    with torch.no_grad():
        result = model(inputs.to(next(model.parameters()).dtype) if inputs.is_floating_point() else inputs, **more)
    return (result if isinstance(result, torch.Tensor) else result.logits).float()
