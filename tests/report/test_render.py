"""The page: complete, escaped, self-contained, and with the report's own numbers."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest

from autoquant.errors import CheckpointError
from autoquant.report import render_html, sentence

from . import sample


def _text(page: str) -> str:
    """What a reader sees: without style, scripts and tags."""
    page = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<wbr>|</?span[^>]*>|</?strong>", "", page)))


def test_the_sentence_leads_the_page() -> None:
    report = sample.full()
    assert sentence(report) in _text(render_html(report))


def test_a_sentence_that_is_given_is_used() -> None:
    assert "PASS: as the pipeline wrote it." in _text(
        render_html({**sample.full(), "sentence": "PASS: as the pipeline wrote it."})
    )


def test_numbers_are_the_reports() -> None:
    text = _text(render_html(sample.full()))
    for shown in (
        "41.8 ms",
        "27.9 ms",
        "19.9 ms",
        "± 0.29",
        "2.10× as fast",
        "1.50× as fast",
        "90.9 MB",
        "23.7 MB",
        "0.26×",
        "298 MB",
        "0.7412",
        "0.7411",
        "0.7400",
        "0.0041",
        "budget 0.01",
        "2,400 queries",
        "AMD EPYC 9654",
        "16 threads",
        "9c1f0b7de2a34856",
        "torch 2.9.1",
        "seed 0",
        "15,872 items evaluated",
        "22.7 M parameters",
        "two rows: scales would cost more than int8 saves",
    ):
        assert shown in text, shown


def test_the_layer_table_sorts_by_the_reports_numbers() -> None:
    report = sample.full()
    table = re.search(r'id="layer-table".*?</table>', render_html(report), flags=re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr>(<td.*?)</tr>", table.group())
    assert len(rows) == 40
    for layer, row in zip(report["layers"], rows, strict=True):
        keys = re.findall(r'data-v="([^"]*)"', row)
        assert keys[0] == layer["name"]
        for key in ("score", "sqnr", "ms_saved", "bytes_saved"):
            assert str(layer[key]) in keys


def test_the_tooltips_hold_every_layer_and_scheme() -> None:
    found = re.search(r'id="cells">(.*?)</script>', render_html(sample.full()), flags=re.DOTALL)
    assert found is not None
    cells = json.loads(found.group(1))
    assert len(cells["schemes"]) == 19
    assert len(cells["cells"]) == 40


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def _poisoned(value: Any) -> Any:
    """The report with every free text (names, labels, reasons, notes) made hostile."""
    kept = {"verdict", "shipped", "status", "created"}
    if isinstance(value, dict):
        return {key: item if key in kept else _poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_poisoned(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_hostile_text_is_escaped_everywhere() -> None:
    for report in (sample.full(), sample.profile_only()):
        page = render_html(_poisoned(report))
        assert "<script>alert" not in page
        assert "<img" not in page
        assert page.count("</script>") == 2  # the data and the page's own script: none was closed early
        assert HOSTILE in _text(page)


def test_hostile_scheme_names_are_escaped() -> None:
    report = sample.full()
    report["schemes"] = {HOSTILE: 1}
    for layer in report["layers"]:
        layer["scheme"] = HOSTILE
        layer["scores"] = {HOSTILE: 1e-6}
    assert "<script>alert" not in render_html(report)


def test_the_page_loads_nothing() -> None:
    for report in (sample.full(), sample.profile_only()):
        page = render_html(report)
        assert "http://" not in page and "https://" not in page
        assert "@import" not in page and "url(" not in page
        assert not re.search(r"<(link|img|iframe|object|embed)\b(?![^>]*href=\"data:)", page)
        assert not re.search(r"<script[^>]*\bsrc=", page)
        assert "default-src 'none'" in page


def test_the_page_is_small() -> None:
    assert len(render_html(sample.full()).encode()) < 400_000


def test_a_profile_shows_sensitivity_only() -> None:
    page = render_html(sample.profile_only())
    for section in ("sensitivity", "layers", "skipped", "method"):
        assert f'<section id="{section}"' in page
    for section in ("before-after", "use", "tradeoff", "certification"):
        assert f'id="{section}"' not in page
    assert ">ms saved<" not in page and ">Scheme<" not in page


def test_the_fewest_keys_are_enough() -> None:
    layer = {"name": "fc", "kind": "linear", "shape": [2, 2], "params": 4, "scores": {"int8-channel-sym": 1e-5}}
    render_html({"title": "t", "created": "now", "layers": [layer]})
    report = sample.full()
    for key in (
        "search",
        "certification",
        "peak_memory_bytes",
        "latency_noise_ms",
        "load",
        "files",
        "notes",
        "skipped",
        "stages",
        "versions",
        "hardware",
        "runtime",
        "threads",
        "shape",
        "profile",
        "model",
        "task",
    ):
        del report[key]
    render_html(report)


@pytest.mark.parametrize(("shipped", "runs"), [("float32", True), ("half", False)])
def test_a_float_map_that_is_shipped_runs_and_is_not_called_quantized(shipped: str, runs: bool) -> None:
    page = render_html({**sample.full(), "shipped": shipped, "schemes": {"float32": 40}, "base_dtype": "float32"})
    assert ("What runs" in page) is runs and ("What was tested, but is not shipped" in page) is not runs
    assert "float32, by autoquant" in page


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "INCONCLUSIVE"])
@pytest.mark.parametrize("shipped", ["quantized", "half", "float32"])
def test_every_ending_has_a_page(verdict: str, shipped: str) -> None:
    report = {**sample.full(), "verdict": verdict, "shipped": shipped}
    for key in ("half", "upper_bound", "lower_bound", "confidence"):
        report["metric"][key] = None
    report["latency_ms"]["quantized"] = None
    page = render_html(report)
    assert f'<body class="{verdict.lower()}">' in page
    assert "None" not in _text(page)


def test_layers_of_any_length_and_220_of_them() -> None:
    report = sample.full(blocks=36)
    report["layers"][0]["name"] = "x" * 400
    assert len(report["layers"]) == 220
    assert 'class="heatbox tall"' in render_html(report)


def test_an_estimate_without_gradients_is_labelled() -> None:
    report = sample.profile_only()
    report["profile"]["method"] = "output-error"
    text = _text(render_html(report))
    assert "no gradient was available" in text
    assert "nats per output, on a log scale" not in text


def test_an_incomplete_report_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'title' is missing"):
        render_html({"layers": [], "created": "now"})
