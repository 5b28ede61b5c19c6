"""How it was measured: pairs of a name and a text, from whatever the report holds."""

from __future__ import annotations

import statistics
from typing import Any

from autoquant.report import humanize

METHODS = {
    "fisher": "sampled-label Fisher",
    "output-error": "output error (no gradient was available: not in nats)",
}


def facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    stages, versions = report.get("stages") or {}, report.get("versions") or {}
    pairs = [
        ("Model", _joined(*_model(report.get("model") or {}))),
        ("Task", _joined(*_task(report.get("task") or {}))),
        ("Certification", _bound(report)),
        ("Float model", _float(report)),
        ("Certification data", _power(report)),
        ("Hardware", _joined(report.get("hardware"), _threads(report))),
        ("Runtime", str(report.get("runtime") or "")),
        ("Input shape", _shape(report.get("shape") or {})),
        ("Search", _joined(*_search(report.get("search") or {}))),
        ("Surrogate", _surrogate(report.get("search") or {})),
        ("Smoothing", _smoothing(report.get("smoothing") or {})),
        ("Profile", _joined(*_profile(report.get("profile") or {}))),
        ("Time", _joined(*(f"{stage} {humanize.seconds(value)}" for stage, value in stages.items()))),
        ("Versions", _joined(*(f"{name} {version}" for name, version in versions.items()))),
    ]
    return [(name, text) for name, text in pairs if text]


def _joined(*parts: Any) -> str:
    return " · ".join(str(part) for part in parts if part)


def _model(model: dict[str, Any]) -> list[str]:
    parts = [str(model[key]) for key in ("name", "class") if model.get(key)]
    if model.get("params") is not None:
        parts.append(f"{humanize.params(model['params'])} parameters")
    return parts + ([f"fingerprint {model['fingerprint']}"] if model.get("fingerprint") else [])


def _task(task: dict[str, Any]) -> list[str]:
    parts = [str(task[key]) for key in ("task", "metric") if task.get(key)]
    items = task.get("items")
    if isinstance(items, dict):
        parts.append("items: " + ", ".join(f"{humanize.count(number)} {split}" for split, number in items.items()))
    return parts


def _bound(report: dict[str, Any]) -> str:
    metric, budget = report.get("metric"), report.get("budget")
    if not metric or not budget:
        return ""
    if metric["confidence"] is None:
        return "point estimate only, no bound"
    use = metric.get("use") or 1
    return _joined(
        f"{metric['method']} bound, one-sided, {humanize.percent(metric['confidence'])} confidence",
        f"use {use} of these certification data" if use > 1 else "",
    )


def _float(report: dict[str, Any]) -> str:
    power = report.get("power") or {}
    if power.get("float_lower") is None or power.get("float_upper") is None:
        return ""
    low, high = humanize.metric(power["float_lower"]), humanize.metric(power["float_upper"])
    return f"{power['metric']} {humanize.metric(power['float_value'])} on the certification data (95%: {low} to {high})"


def _power(report: dict[str, Any]) -> str:
    """What they can settle, as told before the search."""
    power = report.get("power") or {}
    if not power.get("known"):
        return ""
    items = humanize.plural(power["n"], (report.get("metric") or {}).get("item") or "item")
    if power.get("clusters") is not None:
        items += f" in {humanize.plural(power['clusters'], 'cluster')}"
    budget = humanize.budget(power["budget"], (report.get("budget") or {}).get("relative", False))
    if power["settles"] is None:
        settles = f"{items} cannot settle {budget} even if no outcome changes"
    else:
        settles = f"{items} settle {budget} if up to {100 * power['settles']:.2g}% of outcomes change"
    needed = ", ".join(
        f"{humanize.count(count)} if {100 * float(share):.2g}% change"
        for share, count in (power.get("needed") or {}).items()
        if count is not None
    )
    return _joined(settles, f"needed: {needed}" if needed else "")


def _threads(report: dict[str, Any]) -> str:
    return humanize.plural(report["threads"], "thread") if report.get("threads") else ""


def _shape(shape: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shape.items())


def _search(search: dict[str, Any]) -> list[str]:
    if not search:
        return []
    parts = [humanize.plural(search["trials"], "trial")]
    if search.get("skipped"):
        parts.append(f"{search['skipped']} skipped by their price")
    if search.get("failed"):
        parts.append(f"{search['failed']} failed")
    if search.get("full_evaluations") is not None:
        parts.append(f"{humanize.significant(search['full_evaluations'])} full evaluations")
    if search.get("items_evaluated") is not None:
        without = search.get("items_without_racing")
        of = f" of {humanize.count(without)} without racing" if without else ""
        parts.append(f"{humanize.count(search['items_evaluated'])} items evaluated{of}")
    return parts + [f"{key} {search[key]}" for key in ("objective", "seed") if search.get(key) is not None]


def _surrogate(search: dict[str, Any]) -> str:
    """Observed over predicted divergence: how far the additive model can be trusted on this model."""
    ratios = sorted(
        one["divergence"] / one["predicted_divergence"]
        for one in search.get("candidates", [])
        if one.get("divergence") is not None and one.get("predicted_divergence")
    )
    if len(ratios) < 5:
        return ""
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    return (
        f"observed / predicted divergence: median {statistics.median(ratios):.2f}, "
        f"middle 80% {low:.2f} to {high:.2f} ({len(ratios)} candidates)"
    )


def _smoothing(found: dict[str, Any]) -> str:
    """Outliers of layer inputs that were moved into weights."""
    if not found:
        return ""
    if not found["smoothed"]:
        return f"none of {humanize.plural(found['pairs'], 'place')} where the float model would stay the same pays"
    return (
        f"{found['smoothed']} of {humanize.plural(found['pairs'], 'layer input')}, by powers of two: the float model stays "
        f"the same, {100 * found['error_left']:.2g}% of the int8 error is left (median)"
    )


def _profile(profile: dict[str, Any]) -> list[str]:
    if not profile:
        return []
    method = METHODS.get(profile["method"], str(profile["method"]))
    parts = [method, humanize.plural(profile["rows"], "calibration input")]
    if profile.get("forwards") is not None:
        parts.append(f"cost of {humanize.significant(profile['forwards'])} forward passes")
    return parts
