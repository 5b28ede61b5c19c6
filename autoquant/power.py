"""Say before the search what the certification data can settle, with the float model's own uncertainty on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoquant.certify import bootstrap_bounds
from autoquant.certify.power import SHARES, Power, items_for, reach
from autoquant.fresh import load_values, measure
from autoquant.session import Session
from autoquant.tasks import Task
from autoquant.values import Budget

SPLIT = "certification"


def power_stage(session: Session) -> Power:
    """Measure the float model on the certification data, as certification will need it anyway, and tell what they can settle.

    No map is judged here, so these data stay unseen by the search.
    """
    answer = measure(session, "float32", None)
    found = power_of(session.task, load_values(answer), session.budget, session.settings.seed)
    for line in said(found):
        session.progress.say(line)
    if (warning := warned(found)) is not None:
        session.progress.note(warning)
    return found


def power_of(task: Task, values: np.ndarray, budget: Budget, seed: int = 0) -> Power:
    """What the certification split of a task can settle, given the float model's item values on it."""
    clusters, n = task.clusters(SPLIT), len(values)
    lower = upper = None
    if np.ptp(values) > 0:
        bound = bootstrap_bounds(
            lambda index: task.aggregate(SPLIT, values, index), n, 0.975, seed, resamples=999, clusters=clusters
        )
        lower, upper = bound.lower, bound.upper
    more: dict[str, Any] = {}
    known = task.mean_of_items and task.bounds is not None and not task.relative
    if known and budget.confidence is not None and budget.drop > 0:
        assert task.bounds is not None
        width, allowed = task.bounds[1] - task.bounds[0], budget.drop
        if budget.relative:
            allowed *= abs(task.aggregate(SPLIT, values))
        sizes = None if clusters is None else np.bincount(np.unique(clusters, return_inverse=True)[1])
        group = 1.0 if sizes is None else float(sizes.mean())
        level = budget.confidence
        more = {
            "settles": reach(n, allowed, width, level, sizes),
            "settles_half": reach(n, allowed, width, level, sizes, drop=allowed / 2),
            "needed": {f"{share:g}": items_for(share, allowed, width, level, group) for share in SHARES},
            "known": True,
        }
    return Power(
        n=n,
        clusters=None if clusters is None else len(np.unique(clusters)),
        metric=task.metric,
        float_value=task.aggregate(SPLIT, values),
        float_lower=lower,
        float_upper=upper,
        budget=budget.drop,
        confidence=budget.confidence,
        **more,
    )


def said(power: Power) -> list[str]:
    """Lines for the terminal, before the search."""
    units = "" if power.clusters is None else f" in {power.clusters} clusters"
    lines = []
    if power.float_lower is not None and power.float_upper is not None:
        lines.append(
            f"Float   {power.metric} {power.float_value:.4f} (95%: {power.float_lower:.4f} to {power.float_upper:.4f}) on "
            f"{power.n} certification items{units}"
        )
    if power.known:
        needed = ", ".join(
            f"{float(share):.0%} → {'over a million' if count is None else count}"
            for share, count in (power.needed or {}).items()
        )
        if power.settles is not None:
            text = (
                f"Power   {power.n} items{units} settle {power.budget:g} if up to {_share(power.settles)} change by 1"
            )
            half = "not" if power.settles_half is None else f"up to {_share(power.settles_half)}"
            lines.append(f"{text} (at a drop of half of it: {half}; 80% power)")
        lines.append(f"        items that {power.budget:g} needs, by the share that changes: {needed}")
    elif power.confidence is not None and power.budget > 0:
        lines.append(f"Power   of {power.metric} it cannot be told beforehand: its bound is asymptotic")
    return lines


def warned(power: Power) -> str | None:
    """What a user should hear before waiting for a search that cannot end in a PASS."""
    if power.confidence is None:
        return "The budget is judged on the point estimate, without confidence (--confidence none)."
    if power.budget == 0:
        return "A budget of 0 cannot be proved from data: expect INCONCLUSIVE. Allow at least a small drop."
    if power.enough is not False:
        return None
    few = f"{power.n} certification items" + ("" if power.clusters is None else f" in {power.clusters} clusters")
    counts = {share: count for share, count in (power.needed or {}).items() if count is not None}
    share, count = next(iter(counts.items()), (None, None))
    wanted = "" if share is None else f" It takes about {count} if {float(share):.0%} of them change."
    even = " even if none changes" if power.settles is None else ""
    return f"{few} cannot settle a budget of {power.budget:g}{even}: expect INCONCLUSIVE.{wanted}"


def _share(value: float) -> str:
    return f"{100 * value:.2g}%"
