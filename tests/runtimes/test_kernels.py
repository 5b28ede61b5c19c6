"""The kernels compute what they are defined to, whoever calls them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from autoquant.runtimes.native import avx512
from autoquant.schemes import SCHEMES, QuantizedTensor, quantize
from autoquant.values import QuantizationArgs

pytestmark = pytest.mark.skipif(not avx512.available(), reason="no AVX-512 VNNI or no C compiler: no kernels here")

TOKENS = QuantizationArgs(num_bits=8, type="int", strategy="token", symmetric=True, dynamic=True)
CHANNELS = QuantizationArgs(num_bits=8, type="int", strategy="channel", symmetric=True, dynamic=False)


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
