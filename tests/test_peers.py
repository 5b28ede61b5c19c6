"""The comparison with the peers: it runs on a tiny model without any of them, and its tables say what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers.__main__ import checkpoints  # noqa: E402
from benchmarks.peers.engines import ENGINES, REFERENCE  # noqa: E402
from benchmarks.peers.engines.base import UnsupportedError  # noqa: E402
from benchmarks.peers.measure import difference  # noqa: E402
from benchmarks.peers.models import MODELS  # noqa: E402
from benchmarks.peers.tables import markdown, plain  # noqa: E402

ROW = {
    "model": "minilm", "shape": "1x16", "threads": 1, "engine": REFERENCE, "ms": 2.0, "spread": 0.1, "x": 1.0,
    "bytes": 4_000_000, "peak_bytes": 5_000_000, "error": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the command writes for a tiny model, torch and autoquant alone."""
    folder = tmp_path_factory.mktemp("peers")
    tiny.bert(folder / "minilm")
    line = [
        sys.executable, "-m", "benchmarks.peers", "--quick", "--models", folder, "--data", folder, "--shapes", "1x16",
        "--engines", "torch-bf16", "torch-quantize-dynamic", "autoquant-uniform-int8-bf16", "--json", folder / "out.json",
        "--markdown", folder / "out.md", "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, line)), cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "autoquant-uniform-int8-bf16" in (folder / "out.md").read_text()
    return json.loads((folder / "out.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_every_engine_has_its_row(answer):
    rows = {row["engine"]: row for row in answer["rows"]}
    assert list(rows) == [REFERENCE, "torch-bf16", "torch-quantize-dynamic", "autoquant-uniform-int8-bf16"]
    assert all(row["ms"] > 0 and row["rounds"] == 5 for row in rows.values()), rows
    assert rows[REFERENCE]["x"] == 1
    assert rows[REFERENCE]["error"] == 0
    assert rows["torch-bf16"]["bytes"] < 0.6 * rows[REFERENCE]["bytes"]
    assert 0 < rows["torch-bf16"]["error"] < 0.2
    assert 0 < rows["autoquant-uniform-int8-bf16"]["error"] < 0.5


def test_a_failed_engine_shows_its_reason():
    failed = {
        "model": "minilm",
        "shape": "1x16",
        "threads": 1,
        "engine": "other",
        "note": "not installed: pip install x",
    }
    assert plain(failed)["note"] == "not installed: pip install x"
    assert plain(failed)["ms"] is None
    table = markdown([ROW, failed])
    assert "| torch-fp32 | **2 ± 0.1 (1.00×)** | 4 | 5 | 0 | – |" in table
    assert "| other | not installed: pip install x |" in table


def test_packages_that_are_missing_are_named():
    for name, engine in ENGINES.items():
        missing = engine.missing()
        assert missing is None or missing.startswith("not installed: pip install "), name


def test_the_difference_of_outputs_is_relative():
    import numpy as np

    assert difference(np.full(4, 1.1, np.float32), np.ones(4, np.float32)) == pytest.approx(0.1, rel=1e-5)


def test_what_cannot_be_decoded_says_so():
    from benchmarks.peers.engines.base import Served

    class Still(Served):
        def forward(self, inputs):
            raise NotImplementedError

        def array(self, output):
            raise NotImplementedError

    with pytest.raises(UnsupportedError, match="cache"):
        Still().decode({})


def test_checkpoints_are_given_by_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    found = checkpoints([f"minilm={tmp_path}", f"minilm={tmp_path}", f"smollm2={tmp_path}"])
    assert list(found["minilm"]) == ["autoquant", "autoquant-2"]
    assert list(found["smollm2"]) == ["autoquant"]
    with pytest.raises(ValueError, match="MODEL must be one of"):
        checkpoints([f"bert={tmp_path}"])


def test_shapes_are_those_that_were_promised():
    assert {name: [shape.name for shape in model.shapes] for name, model in MODELS.items()} == {
        "minilm": ["1x16", "1x128", "8x128", "32x128"],
        "dinov2-cifar10": ["1-image", "8-images"],
        "smollm2": ["prefill-1x512", "decode-512"],
    }
