"""A run's use of its certification data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoquant.certify.ledger import VARIABLE
from autoquant.reuse import charge_run, map_fingerprint
from autoquant.values import Budget, LayerMap, Smoothing


def session(folder: Path, *, rows: int = 200, model: str = "model", confidence: float | None = 0.95) -> Any:
    notes: list[str] = []
    return SimpleNamespace(
        model_fingerprint=model, task=SimpleNamespace(digests=lambda split: [f"{split} {row}" for row in range(rows)]),
        budget=Budget(0.01, confidence=confidence), folder=folder, notes=notes, progress=SimpleNamespace(note=notes.append),
    )  # fmt: skip


def layer_map(scheme: str) -> LayerMap:
    return LayerMap(layers={"a": scheme, "b": "bfloat16"}, base_dtype="bfloat16")


def test_a_resumed_run_is_the_same_use_and_another_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "user"))
    maps = [layer_map("bfloat16"), layer_map("int8-channel-sym")]
    first = session(tmp_path / "run-1")
    assert [charge_run(first, maps).number for _ in range(2)] == [1, 1] and not first.notes
    second = session(tmp_path / "run-2")
    found = charge_run(second, [layer_map("int8-tensor-sym")])
    assert found.number == 2 and found.confidence == pytest.approx(0.975)
    assert "run-1" in second.notes[0] and "97.5%" in second.notes[0]
    assert charge_run(session(tmp_path / "run-3", model="a fine-tune"), maps).number == 1


def test_picking_another_point_of_the_run_counts_in_the_run_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a ledger of the user's, the run folder's own is left."""
    monkeypatch.setenv(VARIABLE, "none")
    charge_run(session(tmp_path), [layer_map("int8-channel-sym")])
    assert charge_run(session(tmp_path), [layer_map("int8-tensor-sym")]).number == 2


def test_a_map_is_what_it_does_and_not_what_it_was_found_on() -> None:
    plain = layer_map("int8-channel-sym")
    noted = LayerMap(
        layers=plain.layers, base_dtype=plain.base_dtype, found_on={"date": "today"}, verdict={"status": "PASS"}
    )
    assert map_fingerprint(plain) == map_fingerprint(noted) != map_fingerprint(layer_map("int8-tensor-sym"))
    smoothed = replace(plain, smoothing=(Smoothing("norm", ("a",), (1, 0)),))
    others = replace(plain, outliers={"a": (1, 2)})
    assert len({map_fingerprint(one) for one in (plain, smoothed, others)}) == 3
