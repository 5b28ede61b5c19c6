"""What a fresh process is asked to time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoquant import fresh
from autoquant.session import Progress
from autoquant.values import LayerMap


def test_what_is_not_quantized_is_timed_in_every_other_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def run_job(job: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
        asked.update(job)
        return {"ms": {}, "noise": {}}

    monkeypatch.setattr(fresh, "run_job", run_job)
    monkeypatch.setattr(fresh, "checkpoint_of", lambda *_: tmp_path)
    monkeypatch.setattr(fresh, "_common_job", lambda session: {})
    monkeypatch.setattr(fresh, "_model_item", lambda session, path: {})
    session: Any = SimpleNamespace(
        stage_fingerprint=lambda *_: "0123456789", batch_size=8, seq_len=32, module=None, folder=tmp_path,
        runtime=SimpleNamespace(description=lambda: "", rest_seconds=0.0), resume_from=lambda *_: None,
        progress=Progress(quiet=True),
    )  # fmt: skip
    halves = LayerMap({"a": "bfloat16", "b": "bfloat16"}, "bfloat16")
    mixed = LayerMap({"a": "int8-channel-sym", "b": "bfloat16"}, "bfloat16")
    plain = LayerMap({"a": "float32", "b": "float32"}, "float32")
    fresh.measure_latency(session, {"float32": None, "half": halves}, {"0": plain, "1": halves, "2": mixed})
    assert set(asked["models"]) == {"float32", "half", "0", "1", "2"}
    assert asked["seldom"] == ["0", "1", "float32", "half"]
