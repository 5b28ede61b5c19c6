"""The verdict in one sentence of plain English: what a person reads first, and often all that is read."""

from __future__ import annotations

from typing import Any

from autoquant.report import humanize
from autoquant.report.schema import is_run
from autoquant.values import FLOAT_DTYPES


def sentence(report: dict[str, Any]) -> str:
    """The verdict, what it costs, what it saves, and how sure that is; for a profile, what was profiled."""
    if not is_run(report):
        return _profiled(report)
    verdict, shipped = report["verdict"], report["shipped"]
    if verdict == "PASS" and shipped == "quantized":
        return f"PASS: {_subject(report)} {_runs(report, 'quantized')}; {evidence(report)}."
    if verdict == "PASS" and shipped == "float32":
        return "PASS, but quantizing does not pay on this machine: the float32 model is shipped unchanged."
    if verdict == "PASS":
        return f"PASS, but quantizing does not pay on this machine: {_shipped(report)}; {evidence(report)}."
    return f"{verdict}: {evidence(report, _subject(report))}. {_instead(report)}."


def _profiled(report: dict[str, Any]) -> str:
    layers = report["layers"]
    schemes = {scheme for layer in layers for scheme in layer["scores"]}
    text = f"Profile of {humanize.plural(len(layers), 'layer')} under {humanize.plural(len(schemes), 'scheme')}"
    profile = report.get("profile")
    if profile:
        text += f", from {humanize.plural(profile['rows'], 'calibration input')}"
    worst = sorted(layers, key=_worst, reverse=True)[:3]
    return f"{text}. Most sensitive: {', '.join(layer['name'] for layer in worst)}. Nothing was quantized yet."


def _worst(layer: dict[str, Any]) -> float:
    return max((score for score in layer["scores"].values() if score is not None), default=0.0)


def _subject(report: dict[str, Any]) -> str:
    """`int8 on 38 of 40 layers`; families of schemes are counted, not each scheme."""
    families: dict[str, int] = {}
    for scheme, layers in report["schemes"].items():
        if scheme not in FLOAT_DTYPES:
            family = scheme.split("/")[0].split("-")[0]
            families[family] = families.get(family, 0) + layers
    total = sum(report["schemes"].values())
    if not families:
        return f"{report['base_dtype']} throughout"
    parts = [f"{family} on {layers}" for family, layers in sorted(families.items(), key=lambda item: -item[1])]
    if len(families) == 1 and sum(families.values()) == total:
        return f"{next(iter(families))} on all {humanize.plural(total, 'layer')}"
    return f"{' and '.join(parts)} of {humanize.plural(total, 'layer')}"


def _runs(report: dict[str, Any], which: str) -> str:
    """`runs 2.1× as fast as float32 (1.4× bfloat16) at 0.26× of its bytes`, or the honest version when it is slower."""
    half = report["half_dtype"]
    over_float = speedup(report, which, "float32")
    over_half = speedup(report, which, "half") if which != "half" else None
    size = ratio(report["bytes"], which, "float32")
    bytes_text = "" if size is None else f"at {humanize.times(size)} of its bytes"
    if over_float is None:
        return f"takes {humanize.times(size)} of float32's bytes (its speed was not measured)"
    if within_noise(report, which, "float32"):
        text = f"runs no faster than float32 ({humanize.times(over_float)}, within the noise)"
    elif over_float < 1:
        text = f"runs slower than float32 ({humanize.times(over_float)} its speed)"
    else:
        text = f"runs {humanize.times(over_float)} as fast as float32"
    if over_half is not None:
        if within_noise(report, which, "half"):
            text += f", no faster than {half} ({humanize.times(over_half)}, within the noise),"
        elif over_half < 1:
            text += f", but slower than {half} ({humanize.times(over_half)} its speed),"
        else:
            text += f" ({humanize.times(over_half)} {half})"
    return f"{text} {bytes_text}".strip().rstrip(",")


def evidence(report: dict[str, Any], subject: str = "", seen: str = " never seen by the search") -> str:
    """How much worse the metric got, and how sure that is; from the `metric`, `budget` and `verdict` of a report.

    Args:
        seen: what is said of the items.
    """
    metric, budget = report["metric"], report["budget"]
    items = humanize.plural(metric["n"], metric.get("item") or "item")
    if metric.get("clusters"):
        items += f" in {humanize.plural(metric['clusters'], 'cluster')}"
    allowed = f"budget {humanize.budget(budget['drop'], budget['relative'])}"
    fall = "drop" if metric["higher_is_better"] else "rise"
    moves = f"{metric['name']} {_moves(metric, budget)}"
    if subject:
        moves = f"with {subject}, {moves}"
    if metric["confidence"] is None:
        return f"{moves} ({allowed}; judged on the point estimate only, {items}{seen})"
    confidence = humanize.percent(metric["confidence"])
    upper, lower = metric["upper_bound"], metric["lower_bound"]
    seen = f"({allowed}, {items}{seen})"
    if report["verdict"] == "FAIL" and lower is not None and lower > budget["drop"]:
        return f"{moves}, and with {confidence} confidence by more than {_amount(lower, budget, 'down')} {seen}"
    if upper is None:
        return f"{moves}, and no bound could be computed {seen}"
    if report["verdict"] == "PASS":
        if upper <= 0:
            return f"{moves}, and with {confidence} confidence it does not {fall} {seen}"
        by = "by" if metric["drop"] > 0 else f"it {fall}s by"
        return f"{moves}, and with {confidence} confidence {by} less than {_amount(upper, budget, 'up')} {seen}"
    if metric["drop"] > budget["drop"] and lower is not None:
        little = "not at all" if lower <= 0 else f"by as little as {_amount(lower, budget, 'down')}"
        return f"{moves}, but at {confidence} confidence it could {fall} {little} {seen}"
    return f"{moves}, but at {confidence} confidence it could {fall} by up to {_amount(upper, budget, 'up')} {seen}"


def _moves(metric: dict[str, Any], budget: dict[str, Any]) -> str:
    """`drops by 0.0012`; a perplexity `rises by 0.4%`; `does not drop (it rises by 0.0003)`. Positive is worse."""
    worse, better = ("drop", "rise") if metric["higher_is_better"] else ("rise", "drop")
    drop = metric["drop"]
    amount = _amount(abs(drop), budget)
    if drop > 0:
        return f"{worse}s by {amount}"
    return f"does not {worse}" + (f" (it {better}s by {amount})" if drop < 0 else "")


def _instead(report: dict[str, Any]) -> str:
    """What a run without a PASS ships, and what would settle an open question."""
    text = ""
    if report["verdict"] == "INCONCLUSIVE":
        needed, item = report["metric"].get("needed"), report["metric"].get("item") or "item"
        text = f"About {humanize.plural(needed, item)} would settle it. " if needed else "More data would settle it. "
    if report["shipped"] == "quantized":
        return f"{text}The quantized checkpoint is written, but it is not certified"
    return f"{text}Shipped instead: {_shipped(report)}"


def _shipped(report: dict[str, Any]) -> str:
    if report["shipped"] == "float32":
        return "the float32 model, unchanged"
    if report["shipped"] == "half":
        return f"{report['half_dtype']} {_runs(report, 'half')}".replace(" runs ", ", which runs ", 1)
    return _subject(report)


def _amount(value: float, budget: dict[str, Any], towards: str = "nearest") -> str:
    return humanize.drop(value, budget["drop"], budget["relative"], towards)


def ratio(figures: dict[str, Any], which: str, to: str) -> float | None:
    """figures[which] / figures[to], or None when either was not measured."""
    top, bottom = figures.get(which), figures.get(to)
    return top / bottom if top is not None and bottom else None


def speedup(report: dict[str, Any], which: str, over: str) -> float | None:
    """How many times as fast as `over`; above 1 is faster."""
    return ratio(report["latency_ms"], over, which)


def within_noise(report: dict[str, Any], which: str, other: str) -> bool:
    """Whether two latencies differ by less than their noise (added in quadrature), so that neither is called faster."""
    latency, noise = report["latency_ms"], report.get("latency_noise_ms") or {}
    if latency.get(which) is None or latency.get(other) is None:
        return False
    spread = ((noise.get(which) or 0.0) ** 2 + (noise.get(other) or 0.0) ** 2) ** 0.5
    return bool(abs(latency[which] - latency[other]) < spread)
