"""One line about one checkpoint: the answer of `autoquant certify`, for a terminal and for the log of a pipeline."""

from __future__ import annotations

from typing import Any

from autoquant.report import humanize
from autoquant.report.sentence import evidence


def verdict_line(found: dict[str, Any]) -> str:
    """`PASS: accuracy drops by 0.0016, and with 95% confidence by less than 0.0089 (budget 0.01, 1,821 texts): DIR`.

    Args:
        found: what `autoquant.certify` returns.
    """
    text = f"{found['verdict']}: {evidence(found, seen='')}"
    if found["verdict"] == "INCONCLUSIVE":
        needed = found["metric"]["needed"]
        item = found["metric"].get("item") or "item"
        text += f"; about {humanize.plural(needed, item)} would settle it" if needed else "; more data would settle it"
    return f"{text}: {found['checkpoint']} against {found['against']}"


def watch_line(found: dict[str, Any]) -> str:
    """The state of a watch: what was judged so far, and what that says."""
    budget, n = humanize.budget(found["budget"]["drop"], False), found["metric"]["n"]
    if not n:
        return f"no item yet; budget {budget}"
    level = humanize.percent(found["metric"]["confidence"])
    skipped = f", {humanize.plural(found['skipped'], 'line')} skipped" if found["skipped"] else ""
    figures = (
        f"{humanize.plural(n, found['metric']['item'])}{skipped}: {found['metric']['name']} "
        f"{humanize.metric(found['metric']['float'])} → {humanize.metric(found['metric']['quantized'])}, drop "
        f"{found['metric']['drop']:+.4f}, between {found['metric']['lower_bound']:+.4f} and "
        f"{found['metric']['upper_bound']:+.4f} (each {level}, at all times)"
    )
    if found["verdict"] == "FAIL":
        return f"ALARM at item {found['alarm']:,}: the drop has left the budget of {budget} with {level} confidence; {figures}"
    word = "within" if found["verdict"] == "PASS" else "not settled for"
    return f"{word} the budget of {budget}; {figures}"
