"""The last screen."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from autoquant.errors import CheckpointError
from autoquant.report import render_terminal, sentence

from . import sample


def _screen(report: dict[str, Any], folder: str = "", width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    render_terminal(report, console, folder)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_it_says_the_verdict_the_figures_and_what_to_do_next() -> None:
    report = sample.full()
    screen = _screen(report, "runs/minilm")
    assert sentence(report) in " ".join(screen.split())
    for shown in (
        "float32",
        "bfloat16",
        "quantized",
        "0.7400",
        "19.9 ms",
        "2.10×",
        "23.7 MB",
        "298 MB",
        "int8-channel-sym/a8-token on 34 layers",
        "runs/minilm/checkpoint/",
        "runs/minilm/layer_map.yaml",
        'model = load("checkpoint/")',
        "python -m webbrowser runs/minilm/report.html",
    ):
        assert shown in screen, shown


def test_the_pipelines_next_commands_win() -> None:
    screen = _screen({**sample.full(), "next": ["autoquant apply layer_map.yaml MODEL"]})
    assert "autoquant apply layer_map.yaml MODEL" in screen
    assert "webbrowser" not in screen


def test_names_are_not_markup() -> None:
    report = sample.full()
    report["metric"]["name"] = "[red]acc[/red]"
    report["half_dtype"] = "[bold]half"
    report["schemes"] = {"[link=x]int8": 40}
    report["notes"] = ["[/] odd"]
    screen = _screen(report)
    for name in ("[red]acc[/red]", "[bold]half", "[link=x]int8", "[/] odd"):
        assert name in screen


def test_lines_to_copy_are_never_wrapped() -> None:
    command = "autoquant apply " + "very/long/path/" * 12 + "layer_map.yaml"
    assert command in _screen({**sample.full(), "next": [command]}, width=60)


def test_a_long_tail_of_schemes_is_counted() -> None:
    report = {**sample.full(), "schemes": {f"int8-{index}": 1 for index in range(9)}}
    assert "4 more on 4 layers" in _screen(report)


def test_a_profile_has_a_screen() -> None:
    assert "Profile of 40 layers" in _screen(sample.profile_only())


def test_an_incomplete_report_is_refused() -> None:
    with pytest.raises(CheckpointError):
        _screen({"title": "t"})
