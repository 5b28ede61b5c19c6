"""The data of the pictures, without drawing them."""

from __future__ import annotations

import re

import pytest

from autoquant.report.charts.axis import Axis, ticks
from autoquant.report.charts.bars import cards
from autoquant.report.charts.heatmap import heatmap, split_name
from autoquant.report.charts.interval import interval, shared_axis
from autoquant.report.charts.lines import THROUGHPUT, lines
from autoquant.report.charts.tradeoff import GLYPH, LEFT, WIDTH, tradeoffs

from . import sample


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 0.021) == [0.0, 0.005, 0.01, 0.015, 0.02]
    assert ticks(-0.3, 9.7) == [0, 2, 4, 6, 8]


def test_axis_holds_values_inside() -> None:
    axis = Axis(0, 10, 100, 0)
    assert [axis.at(value) for value in (-5, 0, 5, 99)] == [100, 100, 50, 0]


def test_the_interval_is_in_order_and_the_budget_beyond_a_pass() -> None:
    metric = sample.full()["metric"]
    drawn = interval(metric, 0.01, shared_axis([metric], 0.01, 400))
    assert drawn is not None and drawn.low is not None and drawn.high is not None
    assert 0 < drawn.low < drawn.zero < drawn.point < drawn.high < drawn.budget < 400


def test_a_hopeless_map_does_not_squeeze_the_others() -> None:
    rows = [{"drop": 0.7, "upper_bound": 0.8, "lower_bound": 0.6}, {"drop": 0.001}]
    axis = shared_axis(rows, 0.01, 400)
    assert axis.high < 0.06
    assert interval({"drop": None}, 0.01, axis) is None


@pytest.mark.parametrize("budget", [0.0, 0.01])
def test_an_axis_of_nothing_but_zeros_still_has_a_length(budget: float) -> None:
    axis = shared_axis([{"drop": 0.0, "upper_bound": 0.0, "lower_bound": 0.0}], budget, 400)
    assert axis.high > axis.low


def test_bars_are_shares_of_the_largest_and_the_shipped_one_is_marked() -> None:
    latency = cards(sample.full())[0]
    assert [bar.label for bar in latency.bars] == ["float32", "bfloat16", "quantized"]
    assert [bar.width for bar in latency.bars] == [100, 66.8, 47.6]
    assert [bar.ratio for bar in latency.bars] == ["", "1.50× as fast", "2.10× as fast"]
    assert [bar.shipped for bar in latency.bars] == [False, False, True]


def test_a_cost_that_was_not_measured_has_no_card() -> None:
    report = sample.full()
    del report["peak_memory_bytes"]
    assert [card.title for card in cards(report)] == ["Latency", "Checkpoint size"]


def test_every_measured_candidate_is_drawn_and_the_rest_counted() -> None:
    plot = tradeoffs(sample.full())[0]
    assert (plot.key, len(plot.points), plot.missing) == ("ms", 40, 1)
    assert sum(point.mark == "shipped" for point in plot.points) == 1
    assert plot.points[-1].mark == "shipped"  # drawn last, so on top
    assert sum(point.clipped for point in plot.points) == 2


def test_the_front_is_a_staircase_that_falls_to_the_right() -> None:
    plot = tradeoffs(sample.full())[0]
    steps = [(float(x), float(y)) for x, y in re.findall(r"H([\d.]+)V([\d.]+)", plot.front)]
    assert len(steps) > 2
    assert steps == sorted(steps)
    assert [y for _, y in steps] == sorted(y for _, y in steps)


def test_the_plot_of_the_objective_comes_first() -> None:
    report = sample.full()
    report["search"]["objective"] = "bytes"
    assert [plot.key for plot in tradeoffs(report)] == ["bytes", "ms"]


def test_labels_name_the_shipped_one_and_do_not_touch() -> None:
    labels = tradeoffs(sample.full())[0].labels
    assert labels[0].text == "int8 on 38 – shipped"
    assert {"float32", "bfloat16"} <= {label.text for label in labels}


def test_the_shipped_one_is_named_even_in_a_crowd() -> None:
    report = sample.full()
    for one in report["search"]["candidates"]:
        one.update(ms=10.0 + one["number"] % 2, drop=0.001)
    assert any(label.shipped for label in tradeoffs(report)[0].labels)


def test_a_lower_is_better_metric_rises() -> None:
    report = sample.full()
    report["metric"].update(name="perplexity", higher_is_better=False)
    assert tradeoffs(report)[0].y_title == "rise of perplexity on the search split"


def test_candidates_at_one_place_can_be_drawn() -> None:
    report = sample.full()
    for one in report["search"]["candidates"]:
        one.update(ms=10.0, bytes=1000, drop=0.0)
    assert len(tradeoffs(report)) == 2


def test_no_plot_without_candidates() -> None:
    report = sample.full()
    report["search"]["candidates"] = []
    assert tradeoffs(report) == []


@pytest.mark.parametrize(
    ("name", "block", "short"),
    [
        ("bert.encoder.layer.0.output.dense", "layer 0", "output.dense"),
        ("model.layers.31.mlp.experts.7.up_proj", "layers 31", "mlp.experts.7.up_proj"),
        ("h.3.attn.c_attn", "h 3", "attn.c_attn"),
        ("classifier", "", "classifier"),
        ("0.weight", "0", "weight"),
    ],
)
def test_blocks(name: str, block: str, short: str) -> None:
    assert split_name(name) == (block, short)


def test_heatmap_keeps_the_models_order_and_groups_schemes() -> None:
    layers = sample.full()["layers"]
    chart = heatmap(layers)
    assert chart is not None
    assert [row.name for block in chart.blocks for row in block.rows] == [layer["name"] for layer in layers]
    assert [column.scheme for column in chart.columns] == list(sample.SCHEMES)
    assert chart.groups == (("", 3), *((family, 4) for family in sample.WEIGHTS))
    assert [block.name for block in chart.blocks][:2] == ["", "layer 0"]


def test_one_cell_of_each_row_is_chosen_and_darker_is_worse() -> None:
    chart = heatmap(sample.full()["layers"])
    assert chart is not None
    rows = [row for block in chart.blocks for row in block.rows]
    assert all(sum(mark.endswith(" on") for mark in row.marks) == 1 for row in rows)
    assert rows[0].marks.count("none") == 12  # an embedding has no input to quantize
    classifier = [int(mark.split()[0][1:]) for mark in rows[-1].marks]
    assert classifier[0] == 0 and max(classifier) == 11


def test_heatmap_of_odd_scores() -> None:
    base = {"name": "a", "kind": "linear", "shape": [1, 1], "params": 1}
    assert heatmap([{**base, "scores": {}}]) is None
    chart = heatmap([{**base, "scores": {"x": None, "y": 0.0, "z": 1.0}}])
    assert chart is not None
    assert chart.blocks[0].rows[0].marks == ("void", "h0", "h11")


def test_lines_stay_inside_and_rise_with_their_values() -> None:
    point = {
        "threads": 1,
        "seq_len": 16,
        "p50_ms": 2.0,
        "p90_ms": 3.0,
        "noise": 0.1,
        "peak_memory_bytes": 1,
        "noisy": False,
    }
    points = [point | {"batch_size": size, "items_per_s": 100.0 * size} for size in (1, 2, 8)]
    points += [one | {"threads": 2, "noisy": True} for one in points]
    drawn = lines(points, THROUGHPUT)
    assert [line.name for line in drawn.lines] == ["1 thread, 16 tokens", "2 threads, 16 tokens"]
    frame, dots = drawn.frame, drawn.lines[0].dots
    assert frame.left < dots[0].x < dots[1].x < dots[2].x < frame.right
    assert frame.bottom > dots[0].y > dots[1].y > dots[2].y > frame.top
    assert all(frame.top <= dot.high < dot.y < dot.low <= frame.bottom for dot in dots)
    assert not dots[0].hollow and drawn.lines[1].dots[0].hollow
    assert [tick.text for tick in drawn.x_ticks] == ["1", "2", "8"]


@pytest.mark.parametrize("saving", [1.0, 1.5, 3.0, 4.0], ids=lambda saving: f"at {saving}")
@pytest.mark.parametrize("length", [10, 55])
def test_the_shipped_one_is_named_inside_the_picture(saving: float, length: int) -> None:
    report = sample.full()
    (shipped,) = [one for one in report["search"]["candidates"] if one.get("shipped")]
    shipped |= {"label": "m" * length, "ms": 40 / saving, "bytes": int(4e7 / saving)}
    for plot in tradeoffs(report):
        (label,) = [label for label in plot.labels if label.shipped]
        width = GLYPH * len(label.text)
        left = label.x - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
        assert left >= LEFT and left + width <= WIDTH
