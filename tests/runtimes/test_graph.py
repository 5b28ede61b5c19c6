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
from autoquant.runtimes.graph import GraphForward, decelerated, forward
from autoquant.runtimes.graph.capture import capture
from autoquant.runtimes.graph.lower import lower
from autoquant.runtimes.native import avx512
from autoquant.schemes import SCHEMES, QuantizedTensor, project, quantize
from autoquant.values import QuantizationArgs
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
    ours = {"Norm", "PackedLinear", "PackedAttention"}
    for lowered in model.forward.lowered.values():
        assert not ours & {type(getattr(node.target, "__self__", None)).__name__ for node in lowered.graph.nodes}


def test_kernels_refuse_elements_that_they_cannot_read() -> None:
    x = torch.ones(2, 64, dtype=torch.float16)
    weight = QuantizedTensor(torch.ones(64, 64, dtype=torch.int8), torch.ones(64, 1), None)
    heads = x.reshape(1, 2, 1, 64)
    for run in (
        lambda: avx512.Norm(torch.ones(64), None, 1e-5, rms=True)(x),
        lambda: avx512.PackedLinear.pack(weight, None, None, None)(x),
        lambda: avx512.attention(heads, heads, heads),
        lambda: avx512.rotary(heads, heads[:, :1], heads[:, :1]),
    ):
        with pytest.raises(TypeError, match="float16"):
            run()


def test_a_tape_outlives_the_joining_of_its_layers() -> None:
    """Layers join in the graph of another map, too: what was recorded before then reads the memory that they have now."""
    generator = torch.Generator().manual_seed(0)

    def layer() -> avx512.PackedLinear:
        codes = torch.randint(-127, 128, (64, 64), generator=generator, dtype=torch.int8)
        return avx512.PackedLinear.pack(QuantizedTensor(codes, torch.full((64, 1), 0.01), None), None, None, None)

    first, second, x = layer(), layer(), torch.randn(3, 64, generator=generator)
    with avx512.recording() as tape:
        y = first(x)
    expected = y.clone()
    address = first.address
    avx512.join([first, second])
    assert first.address == address
    y.zero_()
    for function, arguments in tape:
        function(*arguments)
    assert torch.equal(y, expected)


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
def test_another_map_exchanges_layers_that_are_part_of_the_graph_too(kind: str, tmp_path: Path) -> None:
    """A graph captured with float convolutions (Conv1D) must not serve the map that makes them int8."""
    model, assembler, _ = assembled(kind, tmp_path / "m", "float32", ("float32",))
    batch = inputs(kind, 2, 6)
    float_output, _ = judged(model, batch)
    inner = [layer.name for layer in inspect(assembler.model).layers if layer.kind in ("conv2d", "conv1d")]
    assert inner
    for scheme in (INT8, "int8-tensor-sym"):
        assembler.assemble(dict.fromkeys(inner, scheme), "float32")
        quantized, eager = judged(model, batch)
        assert (quantized - eager).norm() < 0.3 * (float_output - eager).norm()


def test_joined_layers_share_one_memory_with_their_modules(tmp_path: Path) -> None:
    model, *_ = assembled("llama", tmp_path / "m", "float32", (INT8,))
    before = output(model, inputs("llama", 2, 6))
    attention = model.model.layers[0].self_attn
    if attention.q_proj.out_features % avx512.PANEL:
        return  # too narrow to be joined: see the next test
    assert attention.q_proj.packed.family is attention.k_proj.packed.family
    with decelerated(model):
        assert (output(model, inputs("llama", 2, 6)) - before).norm() <= 0.02 * before.norm()


def test_only_layers_with_the_same_outlier_channels_are_joined() -> None:
    torch.manual_seed(0)
    scheme, x = SCHEMES["int8-channel-asym/a8-outlier"], torch.randn(40, 96)
    channels = torch.arange(0, 96, 6, dtype=torch.int32)
    x[:, channels.long()] *= 50
    assert scheme.weights is not None

    def part(width: int, outliers: Tensor) -> avx512.PackedLinear:
        weight = quantize(torch.randn(width, 96), scheme.weights)
        return avx512.PackedLinear.pack(weight, torch.randn(width), scheme.input, None, outliers)

    parts = [part(64, channels), part(128, channels)]
    assert avx512.can_join(parts) and not avx512.can_join([parts[0], part(64, channels + 1)])
    codes = [one.unpack() for one in parts]
    expected = torch.cat([one(x) for one in parts], -1)
    assert torch.equal(avx512.join(parts)(x), expected)
    assert all(torch.equal(one.unpack(), before) for one, before in zip(parts, codes, strict=True))


def test_a_join_is_the_parts_side_by_side() -> None:
    weights = [torch.randn(width, 48) for width in (64, 128)]
    args = QuantizationArgs(num_bits=8, type="int", strategy="channel", symmetric=False, dynamic=False)
    tokens = QuantizationArgs(num_bits=8, type="int", strategy="token", symmetric=True, dynamic=True)
    parts = [avx512.PackedLinear.pack(quantize(w, args, name="w"), None, tokens, None) for w in weights]
    x = torch.randn(5, 48)
    expected = torch.cat([part(x) for part in parts], -1)
    joined = avx512.join(parts)
    assert torch.equal(joined(x), expected)
    assert torch.equal(torch.cat([part(x) for part in parts], -1), expected)
    assert parts[1].weight.untyped_storage().data_ptr() == joined.weight.untyped_storage().data_ptr()
    assert torch.equal(parts[0].unpack(), quantize(weights[0], args, name="w").values)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads, groups, queries, width", [(2, 1, 7, 32), (4, 2, 33, 24), (3, 1, 70, 64), (2, 2, 5, 7)])
@pytest.mark.parametrize("mask", [None, "padding", "full", "added", "causal"])
def test_attention_is_torchs(
    heads: int, groups: int, queries: int, width: int, mask: str | None, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, queries, heads, width, generator=generator).to(dtype).transpose(1, 2)
    k, v = (
        torch.randn(2, queries, heads // groups, width, generator=generator).to(dtype).transpose(1, 2) for _ in "kv"
    )
    given: Tensor | None = None
    if mask == "padding":
        given = (torch.arange(queries) < torch.tensor([[queries], [max(1, queries // 3)]]))[:, None, None, :]
    elif mask == "full":
        given = torch.rand(2, 1, queries, queries, generator=generator) < 0.6
        given[:, :, :, 0] = True
    elif mask == "added":
        given = torch.randn(1, 1, queries, queries, generator=generator)
    found = avx512.attention(q, k, v, given, causal=mask == "causal")
    wide = [t.float().repeat_interleave(groups, 1) if t is not q else t.float() for t in (q, k, v)]
    expected = nn.functional.scaled_dot_product_attention(*wide, attn_mask=given, is_causal=mask == "causal")
    assert found.shape == expected.shape and found.transpose(1, 2).is_contiguous()
    assert torch.allclose(found.float(), expected, atol=2e-6 if dtype is torch.float32 else 3e-2)


def test_a_row_that_may_attend_to_nothing_is_zero_and_the_others_are_not_touched() -> None:
    q, k, v = (torch.randn(1, 1, 8, 16) for _ in range(3))
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    mask[0, 0, 3] = False
    found = avx512.attention(q, k, v, mask)
    assert bool(torch.isfinite(found).all()) and not found[0, 0, 3].any()
    rest = [i for i in range(8) if i != 3]
    expected = nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(found[0, 0, rest], expected[0, 0, rest], atol=1e-6)


TOKENS = QuantizationArgs(num_bits=8, type="int", strategy="token", symmetric=True, dynamic=True)
CHANNELS = QuantizationArgs(num_bits=8, type="int", strategy="channel", symmetric=True, dynamic=False)


@pytest.mark.parametrize("input", [TOKENS, None], ids=["product", "weights"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "silu", "relu", "swiglu"])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_an_activation_in_the_product_is_the_activation_behind_it(
    act: str, rows: int, dtype: torch.dtype, tolerance: float, input: QuantizationArgs | None
) -> None:
    plain = avx512.PackedLinear.pack(quantize(torch.randn(100, 30), CHANNELS, name="w"), torch.randn(100), input, None)
    x = torch.randn(rows, 30).to(dtype)
    y = plain(x)
    expected = {
        "gelu": nn.functional.gelu,
        "gelu_tanh": lambda y: nn.functional.gelu(y, approximate="tanh"),
        "silu": nn.functional.silu,
        "relu": torch.relu,
        "swiglu": lambda y: nn.functional.silu(y[:, :50]) * y[:, 50:],
    }[act](y)
    assert torch.allclose(plain.with_activation(act)(x), expected, atol=4 * tolerance, rtol=tolerance)
    if act != "swiglu":
        assert torch.allclose(plain.with_activation(act)(x, y), expected + y, atol=4 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 31, 97, 250])
@pytest.mark.parametrize("act", ["gelu", "swiglu"])
@pytest.mark.parametrize(
    "inputs", [(TOKENS, TOKENS), (None, TOKENS), (TOKENS, None)], ids=["int8", "weights first", "weights last"]
)
def test_two_layers_at_once_are_one_after_the_other(
    act: str, rows: int, dtype: torch.dtype, inputs: tuple, threads: int
) -> None:
    def pack(out: int, into: int, input: object) -> avx512.PackedLinear:
        return avx512.PackedLinear.pack(
            quantize(torch.randn(out, into), CHANNELS, name="w"), torch.randn(out), input, None
        )

    torch.manual_seed(0)
    first, second = pack(140, 38, inputs[0]).with_activation(act), pack(66, 70 if act == "swiglu" else 140, inputs[1])
    x, residual = torch.randn(rows, 38, dtype=dtype), torch.randn(rows, 66, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = avx512.PackedPair(first, second)(x, residual)
        torch.testing.assert_close(found, second(first(x), residual), rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("rows", [1, 2, 11, 12, 13, 193, 200])
@pytest.mark.parametrize("inputs, outputs", [(64, 128), (577, 65), (46, 70), (6, 1)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_alone_are_a_product_of_floats(
    rows: int, inputs: int, outputs: int, symmetric: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """Whichever way it is computed: few rows in three digits, many in panels of bfloat16, the last tile of either cut."""
    generator = torch.Generator().manual_seed(rows)
    weight = quantize(
        torch.randn(outputs, inputs, generator=generator) + 0.5, replace(CHANNELS, symmetric=symmetric), name="w"
    )
    x = (torch.randn(rows, inputs, generator=generator) * torch.randn(rows, inputs, generator=generator).exp()).to(
        dtype
    )
    zero = 0 if weight.zero_point is None else weight.zero_point.double()
    expected = x.double() @ ((weight.values.double() - zero) * weight.scale.double()).t()
    packed = avx512.PackedLinear.pack(weight, None, None, None)
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found = packed(x)
        torch.set_num_threads(before)
        assert (found.double() - expected).norm() <= tolerance * expected.norm()


def test_weights_alone_show_what_is_not_finite() -> None:
    packed = avx512.PackedLinear.pack(quantize(torch.randn(70, 32), CHANNELS, name="w"), None, None, None)
    for rows in (2, 40):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(rows, 32).to(dtype)
            x[1, 3] = torch.nan
            y = packed(x)
            assert y[1].isnan().all() and y[0].isfinite().all()
            assert packed(torch.zeros(rows, 32, dtype=dtype)).abs().max() == 0
            large = torch.full((rows, 32), torch.finfo(dtype).max / 1e9, dtype=dtype)
            assert packed(large).isfinite().all() and packed(large * 1e-37).isfinite().all()
