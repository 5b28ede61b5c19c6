"""A model that runs from a captured graph computes what its modules compute."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification

from autoquant.models.layers import inspect
from autoquant.runtimes import TorchRuntime
from autoquant.runtimes.assemble import Assembler
from autoquant.runtimes.graph import GraphForward, decelerated, forward, store
from autoquant.runtimes.graph.capture import capture
from autoquant.runtimes.graph.lower import lower
from autoquant.runtimes.native import avx512
from autoquant.schemes import SCHEMES, project
from autoquant.values import FLOAT_DTYPES
from tests import tiny

pytestmark = pytest.mark.skipif(not avx512.available(), reason="no AVX-512 VNNI or no C compiler: no graphs here")

INT8 = "int8-channel-sym/a8-token"
MIXED = (INT8, "float32", "int8-tensor-asym/a8-tensor", "int8-channel-asym", "int8-channel-sym/a8-static", "bfloat16")


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOQUANT_GRAPH", "1")


def build(kind: str, folder: Path) -> nn.Module:
    if kind == "bert":
        return AutoModel.from_pretrained(tiny.bert(folder)).eval()
    if kind == "vit":
        return AutoModelForImageClassification.from_pretrained(tiny.vit(folder)).eval()
    make = {"llama": tiny.llama, "gpt2": tiny.gpt2}[kind]
    return AutoModelForCausalLM.from_pretrained(make(folder)).eval()


def inputs(kind: str, rows: int, length: int, padding: int = 0) -> dict[str, Tensor | bool]:
    generator = torch.Generator().manual_seed(rows * 100 + length)
    if kind == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    ids = torch.randint(4, 100, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if padding:
        mask[0, length - padding :] = 0
    found: dict[str, Tensor | bool] = {"input_ids": ids, "attention_mask": mask}
    return found if kind == "bert" else {**found, "use_cache": False}


def output(model: nn.Module, batch: dict) -> Tensor:
    dtype = next(p.dtype for p in model.parameters())
    batch = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in batch.items()}
    with torch.inference_mode():
        found = model(**batch)
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state).float()


def assembled(
    kind: str, folder: Path, base: str, schemes: tuple[str, ...]
) -> tuple[nn.Module, Assembler, dict[str, str]]:
    model = build(kind, folder)
    inventory = inspect(model)
    absmax = {layer.name: 3.0 for layer in inventory.layers}
    assembler = Assembler(model, inventory, TorchRuntime(), absmax)
    runtime, layers = TorchRuntime(), {}
    for layer, name in zip(inventory.layers, itertools.cycle(schemes)):
        fits = runtime.supports(layer, project(SCHEMES[name], layer.kind)) is None and layer.tied_to is None
        layers[layer.name] = name if fits else base
    return assembler.assemble(layers, base), assembler, layers


def judged(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
    """(from the graph, from the modules), where there is no padding."""
    graph = output(model, batch)
    assert any(model.forward.lowered.values()), "the graph was not captured"
    with decelerated(model):
        eager = output(model, batch)
    if graph.dim() == 3 and "attention_mask" in batch:
        keep = batch["attention_mask"].bool()
        return graph[keep], eager[keep]
    return graph, eager


def has_kernels(model: nn.Module) -> bool:
    """Whether a graph that the model was run from calls a kernel of ours."""
    ours = {"Norm", "PackedLinear", "PackedAttention"}
    graphs = [lowered.graph for lowered in model.forward.lowered.values() if lowered is not None]
    assert graphs, "the graph was not captured"
    return any(
        type(getattr(node.target, "__self__", None)).__name__ in ours for graph in graphs for node in graph.nodes
    )


@pytest.mark.parametrize("kind", ["bert", "vit", "llama", "gpt2"])
def test_a_float_model_agrees_to_rounding(kind: str, tmp_path: Path) -> None:
    model, *_ = assembled(kind, tmp_path / "m", "float32", ("float32",))
    for rows, length, padding in ((3, 7, 0), (1, 12, 0), (4, 9, 3), (1, 2, 0)):
        graph, eager = judged(model, inputs(kind, rows, length, padding))
        assert torch.allclose(graph, eager, atol=2e-5), (rows, length, padding)


@pytest.mark.parametrize("kind", ["bert", "vit", "llama", "gpt2"])
def test_a_float16_model_is_left_to_torch(kind: str, tmp_path: Path) -> None:
    """Kernels that took its two-byte elements for float32 wrote behind their memory."""
    model, *_ = assembled(kind, tmp_path / "m", "float16", ("float16",))
    graph, eager = judged(model, inputs(kind, 3, 7))
    assert (graph - eager).norm() <= 2e-2 * eager.norm()
    assert not has_kernels(model)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_the_runtime_says_which_base_dtypes_have_kernels(dtype: str, tmp_path: Path) -> None:
    model, *_ = assembled("bert", tmp_path / "m", dtype, (dtype,))
    output(model, inputs("bert", 3, 7))
    assert TorchRuntime().has_kernels(dtype, "cpu") is has_kernels(model)


@pytest.mark.parametrize("schemes", [(INT8,), MIXED], ids=["int8", "mixed"])
@pytest.mark.parametrize("base, tolerance", [("float32", 0.02), ("bfloat16", 0.08)])
@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
def test_a_quantized_model_agrees(
    kind: str, base: str, tolerance: float, schemes: tuple[str, ...], tmp_path: Path
) -> None:
    """Codes that lie near a tie may move: what differs is far below what a wrong kernel would do."""
    model, *_ = assembled(kind, tmp_path / "m", base, schemes)
    for rows, length, padding in ((3, 7, 0), (2, 11, 4)):
        graph, eager = judged(model, inputs(kind, rows, length, padding))
        assert (graph - eager).norm() <= tolerance * eager.norm(), (rows, length, padding)


def test_another_map_on_the_same_model_is_lowered_anew(tmp_path: Path) -> None:
    model, assembler, layers = assembled("bert", tmp_path / "m", "float32", ("float32",))
    batch = inputs("bert", 2, 6)
    float_output = output(model, batch)
    assembler.assemble(dict.fromkeys(layers, INT8), "float32")
    quantized, eager = judged(model, batch)
    assert not torch.equal(quantized, float_output)
    assert (quantized - eager).norm() <= 0.02 * eager.norm()
    assembler.assemble({}, "float32")
    assert torch.equal(output(model, batch), float_output)


@pytest.mark.parametrize("kind", ["vit", "gpt2"])
def test_one_graph_serves_every_map_of_convolutions_too(kind: str, tmp_path: Path) -> None:
    """Captured with float convolutions (Conv1D), it computes the map that makes them int8; capturing takes seconds."""
    model, assembler, _ = assembled(kind, tmp_path / "m", "float32", ("float32",))
    batch = inputs(kind, 2, 6)
    float_output, _ = judged(model, batch)
    (captured,) = model.forward.captured.values()
    inner = [layer.name for layer in inspect(assembler.model).layers if layer.kind in ("conv2d", "conv1d")]
    assert inner
    for scheme in (INT8, "int8-tensor-sym"):
        assembler.assemble(dict.fromkeys(inner, scheme), "float32")
        quantized, eager = judged(model, batch)
        assert (quantized - eager).norm() < 0.3 * (float_output - eager).norm()
    assert list(model.forward.captured.values()) == [captured]
    assert len(list(store.folder().glob("*.json"))) == 1


def test_joined_layers_share_one_memory_with_their_modules(tmp_path: Path) -> None:
    model, *_ = assembled("llama", tmp_path / "m", "float32", (INT8,))
    before = output(model, inputs("llama", 2, 6))
    attention = model.model.layers[0].self_attn
    if attention.q_proj.out_features % avx512.PANEL:
        return  # too narrow to be joined: see the next test
    assert attention.q_proj.packed.family is attention.k_proj.packed.family
    with decelerated(model):
        assert (output(model, inputs("llama", 2, 6)) - before).norm() <= 0.02 * before.norm()


@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_a_replay_gives_what_the_graph_gives_for_new_data(kind: str, base: str, tmp_path: Path) -> None:
    """The same shape three times: the graph, the recording, its replay; and a padded batch with another mask."""
    model, *_ = assembled(kind, tmp_path / "m", base, MIXED)
    for padding in (0, 3):
        first = inputs(kind, 2, 9, padding)
        for _ in range(3):
            output(model, first)
        kept = output(model, first)
        other = inputs(kind, 2, 9, padding)
        name = "pixel_values" if kind == "vit" else "input_ids"
        other[name] = other[name].flip(0) if kind == "vit" else (other[name] + 1) % 100
        if padding and kind != "vit":
            other["attention_mask"] = other["attention_mask"].flip(0)
        replayed = output(model, other)
        assert [plan for plan in model.forward.plans.values() if isinstance(plan, forward.Plan)]
        model.forward.plans.clear()
        assert torch.equal(output(model, other), replayed)
        assert torch.equal(kept, output(model, first))  # what an earlier call returned is its own


def test_a_token_that_the_table_has_not_is_an_error_in_a_replay_too(tmp_path: Path) -> None:
    model, *_ = assembled("bert", tmp_path / "m", "float32", (INT8,))
    batch = inputs("bert", 1, 6)
    for _ in range(3):
        output(model, batch)
    with pytest.raises(IndexError, match="token id"):
        output(model, {**batch, "input_ids": batch["input_ids"] + 10_000})
    output(model, batch)


def test_training_hooks_and_odd_calls_run_the_model_as_written(tmp_path: Path) -> None:
    model, *_ = assembled("bert", tmp_path / "m", "float32", ("float32",))
    batch = inputs("bert", 2, 6)
    model(**batch)  # gradients are on
    assert not model.forward.lowered
    with torch.inference_mode():
        model(**batch, output_hidden_states=True)
        found = model(inputs_embeds=torch.randn(2, 6, tiny.WIDTH))
    assert found.last_hidden_state.shape == (2, 6, tiny.WIDTH)
    seen: list[int] = []
    handle = model.encoder.layer[0].register_forward_hook(lambda *_: seen.append(1))
    with decelerated(model):
        output(model, batch)
    handle.remove()
    assert seen


def test_a_graph_that_computes_something_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, *_ = assembled("bert", tmp_path / "m", "float32", ("float32",))
    batch = inputs("bert", 2, 6)
    with decelerated(model):
        right = output(model, batch)
    real = forward.lower

    def wrong(captured, model):
        found = real(captured, model)
        return replace(found, run=_negated(found.run))

    monkeypatch.setattr(forward, "lower", wrong)
    assert torch.equal(output(model, batch), right) and not model.forward.lowered


def _negated(run):
    def wrong(**inputs):
        found = run(**inputs)
        found.last_hidden_state.neg_()
        return found

    return wrong


class Branching(nn.Module):
    """What it does depends on the length: a graph of one length must not serve the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embedding(x.clamp(0, 7))
        return y if x.shape[1] < 8 else -y


def test_a_graph_serves_only_the_shapes_that_it_holds_for() -> None:
    model = Branching().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    twin = copy.deepcopy(model)
    TorchRuntime().serve(model)
    with torch.inference_mode():
        for length in (5, 12, 6, 8, 7):
            x = torch.randn(3, length, dtype=torch.float64).long()
            assert torch.allclose(model(x), twin(x), atol=1e-6), length


class Positions(nn.Module):
    """Adds positions that are stretched to the size of the input, and noise that must be another one each time."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 4, 3, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        stretched = nn.functional.interpolate(self.positions.float(), size=(x.shape[2], x.shape[3]), mode="bicubic")
        return x + stretched + torch.rand_like(self.positions).mean()


def test_what_depends_on_no_input_is_computed_once_but_random_numbers_are_drawn_anew() -> None:
    model = Positions().eval()
    captured = capture(model, {"x": torch.randn(2, 4, 6, 6)})
    lowered = lower(captured, nn.Module())
    names = [str(node.target) for node in lowered.graph.nodes if node.op == "call_function"]
    assert any("rand_like" in name for name in names) and not any("upsample" in name for name in names)
    x = torch.randn(2, 4, 6, 6)
    first, second = lowered.run(x=x), lowered.run(x=x)
    assert not torch.equal(first, second)
    assert torch.allclose(first - second, (first - second).mean().expand_as(first), atol=1e-5)
    own = nn.functional.interpolate(model.positions, size=(6, 6), mode="bicubic")
    assert 0 < float((first - x - own).mean()) < 1


@pytest.mark.parametrize("padding, mask", [(0, False), (2, True)])
def test_a_mask_that_hides_nothing_is_not_looked_at(padding: int, mask: bool, tmp_path: Path) -> None:
    model = build("bert", tmp_path)
    TorchRuntime().serve(model)
    output(model, inputs("bert", 3, 9, padding))
    forward_ = model.__dict__["forward"]
    (lowered,) = forward_.lowered.values()
    seen = [n.kwargs["mask"] for n in lowered.graph.nodes if "mask" in n.kwargs]
    assert seen and all((one is not None) == mask for one in seen)


def test_a_module_with_a_length_is_copied_like_any_other() -> None:
    model = TorchRuntime().serve(nn.Sequential(nn.Linear(4, 4)).eval())
    twin = copy.deepcopy(model)
    x = torch.randn(3, 4)
    assert torch.equal(twin(x), model(x)) and twin[0] is not model[0]


def test_a_copy_of_a_served_model_serves_itself(tmp_path: Path) -> None:
    model, *_ = assembled("bert", tmp_path / "m", "float32", (INT8,))
    batch = inputs("bert", 2, 6)
    expected = output(model, batch)
    twin = copy.deepcopy(model)
    del model
    assert isinstance(twin.forward, GraphForward) and twin.forward.model is twin
    assert torch.equal(output(twin, batch), expected)
