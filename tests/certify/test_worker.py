"""Models as the fresh process opens them."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoquant.certify import worker
from tests import tiny


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_float_model_runs_where_the_quantized_ones_do(tmp_path: Path, device: str) -> None:
    """Their latencies are compared."""
    item = {"path": str(tiny.bert(tmp_path / "model")), "float": True, "trust_remote_code": False, "device": device}
    assert {tensor.device.type for tensor in worker.open_model(item, "sts").parameters()} == {device}
