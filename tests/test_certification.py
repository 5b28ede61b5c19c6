"""What is shipped once the verdicts are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoquant import certification
from autoquant.certification import Rung, answer, choose, does_not_pay
from autoquant.finals import Finals
from autoquant.session import Progress
from autoquant.values import Budget, Candidate, LayerMap, Verdict

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


@pytest.mark.parametrize(
    ("statuses", "tested", "shipped", "status", "half_says"),
    [
        ({"quantized": "PASS", "half": "INCONCLUSIVE"}, ["quantized", "half"], "quantized", "PASS", "INCONCLUSIVE"),
        ({"quantized": "PASS", "half": "PASS"}, ["quantized", "half"], "quantized", "PASS", "PASS"),
        ({"quantized": "INCONCLUSIVE", "half": "PASS"}, ["quantized", "half"], "half", "INCONCLUSIVE", "INCONCLUSIVE"),
        ({"quantized": "FAIL", "half": "FAIL"}, ["quantized", "half"], "float32", "FAIL", "FAIL"),
    ],
)
def test_half_precision_comes_last_and_without_a_claim_behind_a_map_that_did_not_pass(
    monkeypatch: pytest.MonkeyPatch,
    statuses: dict[str, str],
    tested: list[str],
    shipped: str,
    status: str,
    half_says: str,
) -> None:
    rungs = {"float32": plain(), "half": half(50), "quantized": int8(25)}
    names = {one.candidate.number: name for name, one in rungs.items()}
    seen: list[str] = []

    def measured(session: Any, name: str, path: Path | None) -> dict[str, Any]:
        return {"metric": 0.9, "items": 100, "peak_memory_bytes": 1, "name": name}

    def judged(*_: Any, **__: Any) -> Verdict:
        return Verdict(statuses[seen[-1]], "accuracy", 0.9, 0.9, 0.0, 0.0, 0.0, 0.95, 100, "betting")

    def written(session: Any, layer_map: LayerMap) -> Path:
        name = next(name for name, one in rungs.items() if one.layer_map == layer_map)
        if name != "float32":
            seen.append(name)
        return Path(name)

    for name, stand_in in {
        "measure": measured, "judge": judged, "checkpoint_of": written, "load_values": lambda answer: None,
        "key_of": lambda layer_map: "key", "charge_run": lambda *_: SimpleNamespace(confidence=0.95, number=1),
    }.items():  # fmt: skip
        monkeypatch.setattr(certification, name, stand_in)
    session: Any = SimpleNamespace(
        settings=SimpleNamespace(objective="balanced", rungs=2, seed=0), budget=Budget(0.01), progress=Progress(quiet=True),
        task=SimpleNamespace(metric="accuracy"),
    )  # fmt: skip
    finals = Finals(
        tuple(one.candidate for one in rungs.values()), {number: rungs[name].layer_map for number, name in names.items()},
        {"float32": 100.0, "half": 50.0, "1": 50.0, "2": 25.0}, {"float32": 0.0, "half": 0.0, "1": 0.0, "2": 0.0},
    )  # fmt: skip
    found = certification.certify_stage(session, finals, "bfloat16")
    assert seen == tested
    assert names[found.shipped.candidate.number] == shipped and found.status == status
    assert {names[r.candidate.number]: r.verdict.status for r in found.rungs}["half"] == half_says
