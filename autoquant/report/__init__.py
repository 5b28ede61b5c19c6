"""Report: the summary of a run (`schema`), and its renderings: one sentence, the last screen, one HTML page."""

from autoquant.report.bench import bench_sentences, render_bench_html, render_bench_terminal
from autoquant.report.render import render_html
from autoquant.report.schema import validate
from autoquant.report.sentence import sentence
from autoquant.report.terminal import render_terminal

__all__ = [
    "bench_sentences",
    "render_bench_html",
    "render_bench_terminal",
    "render_html",
    "render_terminal",
    "sentence",
    "validate",
]
