"""What every runtime promises: what it says it can run gives linear(input as quantized, dequantize(weight)).

A new runtime joins by being in `RUNTIMES`, a new scheme by being in `SCHEMES`.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from autoquant.errors import SchemeError
from autoquant.models.layers import inspect
from autoquant.runtimes import RUNTIMES, Runtime, native
from autoquant.schemes import SCHEMES, quantize, quantize_input
from autoquant.values import FLOAT_DTYPES
from tests.contracts.layers import MODULES, prepare, run

KERNELS = tuple(name for name, scheme in SCHEMES.items() if not scheme.is_packed)
"""One scheme for each kernel: packed weights are expanded before they reach one."""
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}
"""Of Σ |x| |w| + |b|, the largest value that rounding has to do with."""


@pytest.fixture(params=FLOAT_DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.param)


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    if reason := RUNTIMES[request.param].missing():
        pytest.skip(reason)
    return RUNTIMES[request.param]()


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", MODULES)
def test_it_runs_what_it_supports_and_refuses_the_rest(
    runtime: Runtime, kind: str, name: str, dtype: torch.dtype
) -> None:
    built = prepare(runtime, kind, name, dtype)
    if reason := runtime.supports(built.layer, built.scheme):
        with pytest.raises(SchemeError) as error:
            built.build()
        assert reason in str(error.value) and name in str(error.value) and built.layer.name in str(error.value)
        return
    module = built.build()
    assert module.scheme_name == name and not module.training
    assert not any(p.requires_grad for p in module.parameters())
    tolerance = max(TOLERANCE[dtype], TOLERANCE.get(getattr(torch, str(built.scheme.dtype), dtype), 0))
    for x in built.inputs():
        before = x.clone()
        y, (expected, size) = run(module, x), built.reference(x)
        assert torch.equal(x, before), "the input was changed"
        assert y.dtype == dtype and y.shape == expected.shape
        off = (y.double() - expected).abs() - tolerance * size - built.ties(x)
        assert bool((off <= 1e-12).all()), f"input {tuple(x.shape)} stride {x.stride()}: off by {off.max().item()}"


@pytest.mark.parametrize("name", [name for name in KERNELS if "/" in name])
@pytest.mark.parametrize("kind", ["linear", "no_bias", "wide", "patchify"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_passes_and_torch_passes_agree(
    kind: str, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native.available(dtype):
        pytest.skip("no compiled passes for this dtype on this machine")
    built = prepare(RUNTIMES["torch"](), kind, name, dtype)
    if reason := built.runtime.supports(built.layer, built.scheme):
        pytest.skip(reason)
    module = built.build()
    fast = [run(module, x) for x in built.inputs()]
    monkeypatch.setattr(native, "available", lambda dtype=torch.float32: False)
    for x, y in zip(built.inputs(), fast, strict=True):
        # Same codes, so what is left is the order of a few float32 operations and one rounding to the dtype.
        assert torch.allclose(run(module, x), y, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-4)


@pytest.mark.parametrize("strategy", ["token", "tensor", "static"])
def test_compiled_codes_are_the_codes_of_the_definition(strategy: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        if not native.available(dtype):
            pytest.skip("no compiled passes for this dtype on this machine")
        x = torch.randn(33, 77, generator=torch.Generator().manual_seed(0)).to(dtype)
        x[5] = 0
        x[6, 3], x[7, 3] = -20, 20
        x[8] *= 1e-30
        x[9] *= 1e30
        scheme = SCHEMES[f"int8-channel-sym/a8-{strategy}"].input
        assert scheme is not None
        scale = torch.tensor([0.0123]) if strategy == "static" else None
        codes, scales = quantize_input(x, scheme, scale)
        found, found_scales, sums = native.quantize_rows(x, scale=scale, per_row=strategy == "token", with_sums=True)
        assert torch.equal(found, codes) and torch.equal(found_scales, scales.flatten()) and sums is not None
        assert torch.equal(sums, codes.sum(1, dtype=torch.int32))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kind", ["linear", "no_bias", "wide", "patchify"])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_row_that_is_not_finite_gives_no_finite_output(
    runtime: Runtime, kind: str, name: str, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation looks for NaN in the model's output: a kernel must not hide it, nor spread it to other rows."""
    if not compiled:
        monkeypatch.setattr(native, "available", lambda dtype=torch.float32: False)
    built = prepare(runtime, kind, name, dtype)
    if reason := runtime.supports(built.layer, built.scheme):
        pytest.skip(f"{runtime.name}: {reason}")
    module = built.build()
    clean = torch.randn(20, 3, 2, 3) if kind == "patchify" else torch.randn(20, built.layer.shape[1])
    clean[[0, 7]] = 0
    clean = clean.to(dtype)
    expected = run(module, clean).flatten(1)
    places = (-1, -3)  # of the wide layer the second is an outlier channel
    for row, place, bad in itertools.product((0, 7), places, (math.nan, -math.nan, math.inf, -math.inf)):
        x = clean.clone()
        x[row].view(-1)[place] = bad
        y = run(module, x).flatten(1)
        # A float product may give infinity for infinity; an integer product gives NaN.
        assert bool(y[row].isnan().all() if built.scheme.input else (~y[row].isfinite()).all())
        if "a8-tensor" in name:
            assert bool(y.isnan().all()), "one scale for all rows: it is lost"
        else:
            good = torch.arange(20) != row
            assert torch.equal(y[good], expected[good]) and bool(y[good].isfinite().all())


UNALIGNED = """
import sys
import torch
from torch import nn
from autoquant.models.layers import inspect
from autoquant.runtimes import RUNTIMES
from autoquant.schemes import SCHEMES, QuantizedTensor, dequantize, quantize

scheme = SCHEMES["int8-channel-sym"]
for dtype in (torch.bfloat16, torch.float16):
    for width in (16, 21, 31, 32, 48, 96, 100):
        source = nn.Linear(width, 40)
        (layer,) = inspect(nn.Sequential(source)).layers
        if RUNTIMES[sys.argv[1]]().supports(layer, scheme):
            continue
        q = quantize(source.weight, scheme.weights, scale_dtype=dtype)
        for offset in (0, 1, 8, 16, 63):
            shifted = torch.zeros(40 * width + offset, dtype=torch.int8)[offset:].view(40, width).copy_(q.values)
            weight = QuantizedTensor(shifted, q.scale)
            module = RUNTIMES[sys.argv[1]]().build(layer, scheme, source, weight, base_dtype=dtype)
            moved = RUNTIMES[sys.argv[1]]().build(layer, scheme, source, weight, base_dtype=dtype)
            if "weight" in moved._buffers:
                moved.weight = shifted  # as whoever maps a file over the buffers would
            for rows in (1, 4, 16):
                x = torch.randn(rows, width).to(dtype)
                expected = nn.functional.linear(x.float(), dequantize(q, torch.float32), source.bias)
                for each in (module, moved):
                    with torch.inference_mode():
                        assert torch.allclose(each(x).float(), expected, rtol=0.05, atol=0.05), (dtype, width, offset)
"""


def test_a_weight_may_start_anywhere_in_memory(runtime: Runtime) -> None:
    """`_weight_int8pack_mm` kills the process on some, as files hold them; hence a process."""
    done = subprocess.run(
        [sys.executable, "-c", UNALIGNED, runtime.name],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"


EXTREMES = """
import sys
import torch
from torch import nn
from autoquant.models.layers import inspect
from autoquant.runtimes import RUNTIMES
from autoquant.schemes import SCHEMES, quantize
source, scheme = nn.Linear(128, 64, bias=False), SCHEMES["int8-channel-sym/a8-token"]
nn.init.constant_(source.weight, 1.0)
(layer,) = inspect(nn.Sequential(source)).layers
weight = quantize(source.weight, scheme.weights)
runtime = RUNTIMES[sys.argv[1]]()
if runtime.supports(layer, scheme):  # refusing is right, too
    sys.exit()
module = runtime.build(layer, scheme, source, weight, base_dtype=torch.float32)
y = module(torch.ones(32, 128))
assert torch.allclose(y, torch.full_like(y, 128.0), rtol=0.01), y.flatten()[:4]
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "DEFAULT"])
def test_codes_at_the_end_of_their_range_do_not_saturate(runtime: Runtime, isa: str) -> None:
    """Products of processors without VNNI do, if nobody looks; oneDNN reads its cap when a process begins."""
    done = subprocess.run(
        [sys.executable, "-c", EXTREMES, runtime.name], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ONEDNN_MAX_CPU_ISA": isa},
    )  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"


@pytest.mark.parametrize(
    "name",
    ["int8-channel-asym/a8-token", "int8-channel-sym/a8-token", "int8-channel-asym/a8-outlier", "int8-tensor-sym/a8-tensor",
     "int8-channel-sym"],
)  # fmt: skip
def test_the_number_of_threads_changes_nothing(runtime: Runtime, name: str) -> None:
    torch.manual_seed(0)
    source, scheme = nn.Linear(160, 130), SCHEMES[name]
    (layer,) = inspect(nn.Sequential(source)).layers
    assert scheme.weights is not None
    if reason := runtime.supports(layer, scheme):
        pytest.skip(f"{runtime.name}: {reason}")
    weight, outliers = quantize(source.weight, scheme.weights), torch.arange(0, 160, 10, dtype=torch.int32)
    module = runtime.build(layer, scheme, source, weight, base_dtype=torch.float32, outliers=outliers)
    x = torch.randn(150, 160)  # enough elements that the passes take both threads
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(run(module, x))
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [("linear", name, "calibrated input scale") for name in SCHEMES if name.endswith("a8-static")]
    + [("wide", name, "needs to know them") for name in SCHEMES if name.endswith("a8-outlier")],
)
def test_what_a_scheme_has_calibrated_must_be_given(runtime: Runtime, kind: str, name: str, reason: str) -> None:
    built = prepare(runtime, kind, name, torch.float32)
    if unsupported := runtime.supports(built.layer, built.scheme):
        pytest.skip(f"{runtime.name}: {unsupported}")
    with pytest.raises(SchemeError, match=reason):
        runtime.build(built.layer, built.scheme, built.source, built.weight, base_dtype=torch.float32)


def test_a_description_names_the_machine(runtime: Runtime) -> None:
    assert torch.__version__ in runtime.description()
