"""What is shipped once the verdicts are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoquant.certification import Rung, answer, choose, does_not_pay
from autoquant.values import Candidate, LayerMap, Verdict

INT8 = "int8-channel-sym"


def rung(base: str, scheme: str, ms: float, size: int, status: str, number: int = 0) -> Rung:
    saving = (100 / ms * 400 / size) ** 0.5
    candidate = Candidate(
        number, f"{scheme} in {base}", "proposed", base, {"layer": scheme}, ms=ms, bytes=size, saving=saving,
        noise=0.0, margin=-1.0, divergence=size / 1e4 if scheme == base else 1.0,
    )  # fmt: skip
    verdict = Verdict(status, "accuracy", 0.9, 0.9, 0.0, 0.0, 0.0, 0.95, 100, "betting")
    return Rung(candidate, LayerMap(layers={"layer": scheme}, base_dtype=base), verdict, 0.9, None, Path())


def plain(ms: float = 100) -> Rung:
    return rung("float32", "float32", ms, 400, "PASS")


def half(ms: float, status: str = "PASS") -> Rung:
    return rung("bfloat16", "bfloat16", ms, 200, status, 1)


def int8(ms: float, status: str = "PASS") -> Rung:
    return rung("float32", INT8, ms, 100, status, 2)


@pytest.mark.parametrize(
    ("half_", "quantized", "shipped", "judged", "status"),
    [
        (half(50), int8(25), "quantized", "quantized", "PASS"),
        (half(50), int8(25, "FAIL"), "half", "quantized", "FAIL"),
        (half(50, "INCONCLUSIVE"), None, "half", "half", "INCONCLUSIVE"),
        (half(50, "FAIL"), None, "float32", "half", "FAIL"),
        (half(50), int8(60), "half", "half", "PASS"),
        (half(50), None, "half", "half", "PASS"),
        (None, int8(25), "quantized", "quantized", "PASS"),
        (None, int8(25, "INCONCLUSIVE"), "float32", "quantized", "INCONCLUSIVE"),
        (None, None, "float32", "float32", "PASS"),
        (half(120, "INCONCLUSIVE"), None, "float32", "half", "INCONCLUSIVE"),
    ],
)
def test_what_passed_and_is_best_is_shipped(
    half_: Rung | None, quantized: Rung | None, shipped: str, judged: str, status: str
) -> None:
    rungs = [one for one in (half_, quantized) if one is not None]
    given = {"float32": plain(), "half": half_, "quantized": quantized}
    found = choose([plain(), *rungs], "balanced")
    kinds = {one.label: name for name, one in given.items() if one is not None}
    assert kinds[found.label] == shipped
    about, said = answer(rungs, found)
    assert (kinds[about.label], said) == (judged, status)


def test_a_quantized_map_that_passed_but_is_slower_is_not_shipped() -> None:
    found = choose([plain(100), int8(110)], "balanced")
    assert found.label == "float32 in float32"
    assert choose([plain(100), int8(110)], "memory").candidate.quantized
    text = does_not_pay([plain(100).candidate, int8(110).candidate], found.candidate)
    assert "does not pay" in text and "110 ms" in text and "float32 in float32 100 ms" in text


def test_the_best_half_that_is_slower_than_float32_is_not_shipped() -> None:
    """Where a CPU has no bfloat16, half the bytes cost four times the time."""
    assert choose([plain(100), half(450)], "balanced").label == "float32 in float32"
    assert choose([plain(100), half(90)], "balanced").label == "bfloat16 in bfloat16"
