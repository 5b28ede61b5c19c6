"""What can be quantized in a model, what cannot and why."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from autoquant.errors import ModelError
from autoquant.models.layers import (
    block_of,
    cast_floats,
    fingerprint_architecture,
    fingerprint_model,
    get_module,
    groups,
    inspect,
    set_module,
    weight_matrix,
)


def llama(tied: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=1, tie_word_embeddings=tied, **sizes)).eval()


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=8, n_embd=16, n_layer=1, n_head=2)).eval()


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 2, 2)
        self.stem = nn.Conv2d(3, 4, 3, 1, padding=1, bias=False)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.mirrored = nn.Conv2d(4, 4, 3, padding_mode="reflect", padding=1)
        self.normed = nn.Embedding(5, 4, max_norm=1.0)
        self.norm = nn.LayerNorm(4)
        self.own = nn.Bilinear(4, 4, 4)
        self.first = nn.Linear(4, 6)


def test_linear_conv1d_conv2d_and_embedding_are_found_with_their_shapes() -> None:
    found = {layer.name: layer for layer in inspect(Odd()).layers}
    assert set(found) == {"patches", "stem", "first"}
    assert found["patches"].shape == (4, 12) and found["patches"].patchify and found["patches"].has_bias
    assert found["stem"].shape == (4, 27) and not found["stem"].patchify and not found["stem"].has_bias
    assert found["first"].shape == (6, 4) and found["first"].kind == "linear" and found["first"].params == 24
    attention = inspect(gpt2()).layer("transformer.h.0.attn.c_attn")
    assert attention.kind == "conv1d" and attention.shape == (48, 16)
    assert inspect(llama()).layer("model.embed_tokens").kind == "embedding"


@pytest.mark.parametrize("change", [{"stride": 1}, {"padding": 1}, {"dilation": 2}, {"padding": "same", "stride": 1}])
def test_a_convolution_is_patchify_only_if_patches_neither_overlap_nor_leave_gaps(change: dict) -> None:
    for plain in ({}, {"padding": "valid"}):
        assert inspect(nn.Sequential(nn.Conv2d(3, 4, 2, 2, **plain))).layers[0].patchify
    assert not inspect(nn.Sequential(nn.Conv2d(3, 4, 2, **{"stride": 2, **change}))).layers[0].patchify


def test_every_other_module_with_weights_is_skipped_for_a_reason() -> None:
    model = Odd()
    inventory = inspect(model)
    reasons = {skipped.name: skipped.reason for skipped in inventory.skipped}
    assert set(reasons) == {"grouped", "mirrored", "normed", "norm", "own"}
    assert all(reasons.values())
    assert "grouped" in reasons["grouped"] and "max_norm" in reasons["normed"]
    assert next(s for s in inventory.skipped if s.name == "norm").params == 8
    layers = sum(p.numel() for layer in inventory.layers for p in get_module(model, layer.name).parameters())
    assert layers + sum(s.params for s in inventory.skipped) == sum(p.numel() for p in model.parameters())


def test_a_subclass_is_not_quantized_for_its_forward_may_differ() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    inventory = inspect(nn.Sequential(Scaled(4, 4), nn.Linear(4, 4)))
    assert [layer.name for layer in inventory.layers] == ["1"] and inventory.skipped[0].type == "Scaled"


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no layer that can be quantized"):
        inspect(nn.Sequential(nn.LayerNorm(4)))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_weight_has_one_owner_and_one_group(tied: bool) -> None:
    inventory = inspect(llama(tied))
    assert inventory.layer("lm_head").tied_to == ("model.embed_tokens" if tied else None)
    assert inventory.layer("model.embed_tokens").tied_to is None
    grouped = {group.name: [layer.name for layer in group.layers] for group in groups(inventory.layers)}
    assert grouped["model.embed_tokens"] == ["model.embed_tokens", *(["lm_head"] if tied else [])]


@pytest.mark.parametrize("fuse", [True, False])
def test_groups_are_a_partition_in_order(fuse: bool) -> None:
    for model in (llama(), llama(tied=True), gpt2()):
        layers = inspect(model).layers
        members = [layer for group in groups(layers, fuse=fuse) for layer in group.layers]
        assert sorted(layer.name for layer in members) == sorted(layer.name for layer in layers)
        assert len({group.name for group in groups(layers, fuse=fuse)}) == len(groups(layers, fuse=fuse))


def test_fusing_puts_projections_of_one_block_together_and_only_them() -> None:
    layers = inspect(llama()).layers
    fused = {group.name: len(group.layers) for group in groups(layers, fuse=True)}
    for block in (0, 1):
        assert fused[f"model.layers.{block}.self_attn.q_proj+k_proj+v_proj"] == 3
        assert fused[f"model.layers.{block}.mlp.gate_proj+up_proj"] == 2
        assert fused[f"model.layers.{block}.mlp.down_proj"] == 1
    assert all(len(group.layers) == 1 for group in groups(layers))


def test_the_matrix_is_a_view_that_multiplies_like_the_module() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 12)
    for module in (nn.Linear(12, 7, bias=False), Conv1D(7, 12)):
        matrix = weight_matrix(module)
        assert matrix.shape == (7, 12) and matrix.data_ptr() == module.weight.data_ptr()
        assert torch.allclose(module(x), x @ matrix.t(), atol=1e-6)
    convolution = nn.Conv2d(3, 4, 2, bias=False)
    pixels = convolution(x.view(5, 3, 2, 2)).flatten(1)
    assert torch.allclose(pixels, x @ weight_matrix(convolution).t(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_keeps_rotary_buffers_and_integers(dtype: torch.dtype) -> None:
    model = llama()
    frequencies = model.model.rotary_emb.inv_freq.clone()
    model.register_buffer("steps", torch.tensor([3]))
    model.register_buffer("mean", torch.tensor([0.1]))
    assert cast_floats(model, dtype) is model
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies) and frequencies.dtype == torch.float32
    assert model.steps.dtype == torch.int64 and model.mean.dtype == dtype


def test_casting_keeps_what_the_model_wants_in_float32() -> None:
    model = llama()
    model._keep_in_fp32_modules = ["down_proj"]
    cast_floats(model, torch.float16)
    assert model.model.layers[0].mlp.down_proj.weight.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float16
    assert cast_floats(llama(), torch.bfloat16).model.layers[0].mlp.down_proj.weight.dtype == torch.bfloat16


def test_casting_keeps_ties() -> None:
    model = cast_floats(llama(tied=True), torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_model_fingerprint_sees_a_change_of_one_weight_and_no_more() -> None:
    same, again, other = fingerprint_model(llama()), fingerprint_model(llama()), fingerprint_model(llama(seed=1))
    assert same == again != other and len(same) == 16
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    assert fingerprint_model(model) != same


def test_the_architecture_fingerprint_is_that_of_any_fine_tune() -> None:
    one, two = (
        fingerprint_architecture(inspect(llama()).layers),
        fingerprint_architecture(inspect(llama(seed=1)).layers),
    )
    assert one == two != fingerprint_architecture(inspect(gpt2()).layers)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("encoder.layer.11.output.dense", "encoder.layer.11"),
        ("model.layers.0", "model.layers.0"),
        ("lm_head", "lm_head"),
        ("embeddings.word_embeddings", "embeddings.word_embeddings"),
        ("visual.blocks.3.attn.qkv", "visual.blocks.3"),
    ],
)
def test_blocks(name: str, block: str) -> None:
    assert block_of(name) == block


def test_modules_are_read_and_replaced_by_name() -> None:
    model, new = llama(), nn.Identity()
    set_module(model, "model.layers.1.mlp.up_proj", new)
    assert get_module(model, "model.layers.1.mlp.up_proj") is new
    set_module(model, "lm_head", new)
    assert model.lm_head is new


def test_a_bias_that_the_head_owns_too_is_listed_once() -> None:
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    inventory = inspect(BertForMaskedLM(config))
    assert inventory.layer("cls.predictions.decoder").tied_to == "bert.embeddings.word_embeddings"
    assert inventory.layer("cls.predictions.decoder").has_bias
