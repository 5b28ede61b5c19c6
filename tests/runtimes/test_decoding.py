"""Decoding with a cache from a graph gives the tokens that the model as written gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache, StaticCache

from autoquant.models.layers import inspect
from autoquant.runtimes import TorchRuntime
from autoquant.runtimes.assemble import Assembler
from autoquant.runtimes.graph import GraphForward, cache, decelerated, forward
from autoquant.runtimes.native import avx512
from tests import tiny

pytestmark = pytest.mark.skipif(not avx512.available(), reason="no AVX-512 VNNI or no C compiler: no graphs here")


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOQUANT_GRAPH", "1")
    monkeypatch.setattr(forward, "FEW", 0)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nn.Module]:
    """Weight-only int8 where that is possible, in float32: both ways then differ by rounding alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOQUANT_GRAPH", "1")
        made = getattr(tiny, request.param)(tmp_path_factory.mktemp(request.param))
        plain = AutoModelForCausalLM.from_pretrained(made).eval()
        inventory = inspect(plain)
        layers = {x.name: "int8-channel-sym" for x in inventory.layers if x.tied_to is None}
        yield Assembler(plain, inventory, TorchRuntime(), {}).assemble(layers, "float32")


def generated(model: Any, ids: Tensor, **options: Any) -> Tensor:
    with torch.inference_mode():
        return model.generate(
            ids, attention_mask=options.pop("mask", torch.ones_like(ids)), max_new_tokens=12, min_new_tokens=12, pad_token_id=0,
            do_sample=False, **options,
        )  # fmt: skip


def graphs_with_a_cache(model: nn.Module) -> int:
    served = model.__dict__["forward"]
    assert isinstance(served, GraphForward)
    return sum(any(part == (cache.NAME, True) for part in key) for key in served.lowered)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_same_tokens(model: nn.Module, rows: int) -> None:
    ids = torch.randint(4, 100, (rows, 9), generator=torch.Generator().manual_seed(rows))
    found = generated(model, ids)
    with decelerated(model):
        expected = generated(model, ids)
    assert torch.equal(found, expected)
    assert graphs_with_a_cache(model)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"mask": "padding"}, {"use_cache": False}], ids=str)
def test_the_same_tokens_in_other_ways_of_generating(model: nn.Module, options: dict) -> None:
    ids = torch.randint(4, 100, (2, 9), generator=torch.Generator().manual_seed(5))
    if options.get("mask"):
        mask = torch.ones_like(ids)
        mask[0, :4] = 0
        options = {**options, "mask": mask}
    found = generated(model, ids, **options)
    with decelerated(model):
        expected = generated(model, ids, **options)
    assert torch.equal(found, expected)


def step(model: Any, token: int, past: DynamicCache) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([[token]]), past_key_values=past, use_cache=True).logits


def test_a_shared_beginning_and_a_cropped_cache_stay_what_they_are(model: nn.Module) -> None:
    ids = torch.randint(4, 100, (1, 9), generator=torch.Generator().manual_seed(7))
    past = DynamicCache()
    with torch.inference_mode():
        model(ids, past_key_values=past, use_cache=True)  # type: ignore[operator]
    step(model, 11, past)
    twin, shallow = copy.deepcopy(past), DynamicCache()
    shallow.layers = [copy.copy(layer) for layer in past.layers]
    first = step(model, 12, past)
    assert torch.equal(step(model, 12, twin), first)
    other = step(model, 13, shallow)  # its rows are not those that `past` wrote
    assert not torch.allclose(other, first)
    past.crop(-1)
    assert torch.allclose(step(model, 13, past), other, atol=1e-5)
    assert past.get_seq_length() == shallow.get_seq_length() == 11
    with decelerated(model):
        assert torch.allclose(step(model, 14, copy.deepcopy(past)), step(model, 14, shallow), atol=1e-5)


def test_another_kind_of_cache_runs_the_model_as_written(model: nn.Module) -> None:
    past = StaticCache(config=model.config, max_cache_len=32)  # type: ignore[arg-type]
    assert cache.length_of(past) is None
    with torch.inference_mode():
        found = model(torch.tensor([[5, 6, 7]]), past_key_values=past, use_cache=True)  # type: ignore[operator]
    assert found.past_key_values is past


def test_what_a_call_returns(model: nn.Module) -> None:
    past = DynamicCache()
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        found = model(ids, past_key_values=past, use_cache=True)  # type: ignore[operator]
        assert found.past_key_values is past and past.get_seq_length() == 3
        again = model(ids[:, :1], past_key_values=past, use_cache=True)  # type: ignore[operator]
    assert type(again) is type(found) and list(again) == list(found)
    assert again.past_key_values is past and past.get_seq_length() == 4


def test_a_signature_is_captured_when_it_has_come_often(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    served = copy.deepcopy(model)
    monkeypatch.setattr(forward, "FEW", 6)
    ids = torch.randint(4, 100, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        past = DynamicCache()
        served(ids, past_key_values=past, use_cache=True)
        for count in range(1, 9):
            served(ids[:, :1], past_key_values=past, use_cache=True)
            assert graphs_with_a_cache(served) == int(count > 6)


def test_layers_share_what_they_all_ask_for(model: nn.Module) -> None:
    """The cosines of rotary positions, and masks: an operation on the same inputs is there once."""
    generated(model, torch.randint(4, 100, (1, 9), generator=torch.Generator().manual_seed(1)))
    for lowered in model.__dict__["forward"].lowered.values():
        calls = [node for node in lowered.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
        assert len({repr((node.target, node.args, node.kwargs)) for node in calls}) == len(calls)


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("width", [6, 64, 80])
def test_rotary_positions(rows: int, dtype: torch.dtype, tolerance: float, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, rows, 3, width, generator=generator).to(dtype).transpose(1, 2)
    angles = torch.randn(1, 1, rows, width // 2, generator=generator)
    cos, sin = (torch.cat([t, t], -1).to(dtype) for t in (angles.cos(), angles.sin()))
    turned = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
    expected = x.float() * cos.float() + turned.float() * sin.float()
    assert torch.allclose(avx512.rotary(x, cos, sin).float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("heads, groups, keys, width", [(4, 2, 1, 64), (6, 3, 333, 64), (3, 1, 17, 80), (2, 2, 40, 7)])
@pytest.mark.parametrize("hidden", [0, 3])
def test_attention_of_one_query(
    dtype: torch.dtype, tolerance: float, heads: int, groups: int, keys: int, width: int, hidden: int
) -> None:
    generator = torch.Generator().manual_seed(keys)
    q = torch.randn(2, heads, 1, width, generator=generator).to(dtype)
    memory = torch.randn(2, 2, heads // groups, keys + 9, width, generator=generator).to(dtype)
    k, v = memory[:, :, :, :keys]
    mask = None
    if 0 < hidden < keys:
        mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
        mask[0, ..., :hidden] = False
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.float(), k.repeat_interleave(groups, 1).float(), v.repeat_interleave(groups, 1).float(), mask
    )
    assert torch.allclose(avx512.attention(q, k, v, mask).float(), expected, atol=tolerance, rtol=tolerance)
