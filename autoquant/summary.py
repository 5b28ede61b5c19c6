"""Everything that a report says, as plain data: `report.json`. Rendering it is another matter (`autoquant.report`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from autoquant import artifacts
from autoquant.certification import Certified
from autoquant.models.layers import block_of
from autoquant.report import sentence
from autoquant.schemes import SCHEMES, project
from autoquant.session import Session, now, versions
from autoquant.values import Candidate, Layer, Price, Profile

ITEM_WORDS = {
    "retrieval": "query",
    "sts": "pair",
    "classification": "text",
    "causal-lm": "window",
    "image-classification": "image",
}

LOAD = """import autoquant
model = autoquant.load("{path}")"""


def summarise_profile(session: Session, profile: Profile, stages: Mapping[str, float]) -> dict[str, Any]:
    return {
        "title": f"{session.loaded.source}: sensitivity of each layer",
        "created": now(),
        "layers": [layer_row(session, layer, profile, None, None, None) for layer in session.inventory.layers],
        **_common(session, profile, stages),
    }


def summarise(
    session: Session, profile: Profile, price: Price, found: list[Candidate], certified: Certified,
    stages: Mapping[str, float], half: str, ended: str,
) -> dict[str, Any]:  # fmt: skip
    task, verdict = session.task, certified.judged.verdict
    layer_map = certified.judged.layer_map
    floats = {layer.name: "float32" for layer in session.inventory.layers}
    halves = {layer.name: half for layer in session.inventory.layers}
    winner = certified.shipped.candidate
    shipped = "quantized" if winner.quantized else "float32" if winner.base_dtype == "float32" else "half"
    judged = [(rung.label, rung.verdict) for rung in certified.rungs]
    results = {label: answer.status for label, answer in judged}
    front = _front(found)
    sizes = {
        "float32": price.bytes_of("float32", floats),
        "half": price.bytes_of(half, halves),
        "quantized": artifacts.folder_bytes(certified.judged.path),
    }
    half_rung = next((rung for rung in certified.rungs if set(rung.layer_map.layers.values()) == {half}), None)
    report: dict[str, Any] = {
        "title": f"{session.loaded.source} on {task.name}",
        "created": now(),
        "verdict": certified.status,
        "shipped": shipped,
        "budget": {
            "drop": session.budget.drop,
            "relative": session.budget.relative or task.relative,
            "confidence": session.budget.confidence,
        },
        "metric": {
            "name": task.metric,
            "item": ITEM_WORDS.get(task.name, "item"),
            "higher_is_better": task.higher_is_better,
            "float": verdict.float_value,
            "half": half_rung.metric if half_rung else None,
            "quantized": verdict.quantized_value,
            **{
                key: getattr(verdict, key)
                for key in (
                    "drop",
                    "upper_bound",
                    "lower_bound",
                    "confidence",
                    "n",
                    "method",
                    "needed",
                    "clusters",
                    "use",
                )
            },
        },
        "half_dtype": half,
        "base_dtype": layer_map.base_dtype,
        "latency_ms": dict(certified.latency_ms),
        "latency_noise_ms": dict(certified.latency_noise_ms),
        "bytes": sizes,
        "peak_memory_bytes": dict(certified.peak_memory_bytes),
        "search": {
            "trials": sum(c.state != "skipped" for c in found),
            "full_evaluations": round(session.search_items / session.task.items("search"), 2),
            "items_evaluated": session.search_items,
            "items_without_racing": sum(c.state in ("complete", "skipped") for c in found)
            * session.task.items("search"),
            "seconds": stages.get("search", 0.0),
            "failed": sum(c.state == "failed" for c in found),
            "skipped": sum(c.state == "skipped" for c in found),
            "objective": session.settings.objective,
            "strategy": session.settings.strategy,
            "space": session.space.name,
            "seed": session.settings.seed,
            "ended": ended,
            "candidates": [
                {
                    **{k: v for k, v in c.to_dict().items() if k != "layers"},
                    "on_front": c.number in front,
                    "certified": results.get(c.label),
                    "shipped": c.label == certified.shipped.label,
                }
                for c in found
            ],
        },
        "certification": [
            {"label": label, **{k: getattr(answer, k) for k in ("status", "drop", "upper_bound", "lower_bound", "n")}}
            for label, answer in judged
        ],
        "schemes": dict(Counter(layer_map.layers.values()).most_common()),
        "layers": [
            layer_row(session, layer, profile, price, layer_map.base_dtype, layer_map.layers[layer.name])
            for layer in session.inventory.layers
        ],
        "load": LOAD.format(path=session.folder / "checkpoint"),
        "files": {
            "checkpoint": "checkpoint/",
            "layer map": "layer_map.yaml",
            "report": "report.html",
            "figures": "report.json",
        },
        "threads": price.threads,
        "shape": dict(price.shape),
        **_common(session, profile, stages),
    }
    report["sentence"] = sentence(report)
    return report


def _common(session: Session, profile: Profile, stages: Mapping[str, float]) -> dict[str, Any]:
    return {
        "skipped": [
            {"name": s.name, "type": s.type, "params": s.params, "reason": s.reason} for s in session.inventory.skipped
        ],
        "profile": {
            "method": profile.method,
            "rows": profile.rows,
            "forwards": profile.forwards,
            "seconds": profile.seconds,
        },
        **({"smoothing": dict(session.smoothing)} if session.smoothing else {}),
        "stages": dict(stages),
        "model": {
            "name": session.loaded.source,
            "class": type(session.model).__name__,
            "params": sum(p.numel() for p in session.model.parameters()),
            "fingerprint": session.model_fingerprint,
        },
        "task": session.task.describe(),
        "notes": list(session.progress.notes),
        "versions": versions(),
        "hardware": session.runtime.description(),
        "runtime": session.runtime.name,
        "threads": torch.get_num_threads(),
    }


def layer_row(
    session: Session, layer: Layer, profile: Profile, price: Price | None, base: str | None, scheme: str | None
) -> dict[str, Any]:
    """One layer of the report; price and choice are None in a profile-only report."""
    stats, scores, sqnr = profile.stats[layer.name], profile.scores[layer.name], profile.sqnr_db[layer.name]
    row: dict[str, Any] = {
        "name": layer.name,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "params": layer.params,
        "block": block_of(layer.name),
        "weight_min": stats.weight_min,
        "weight_max": stats.weight_max,
        "weight_kurtosis": stats.weight_kurtosis,
        "channel_range_ratio": stats.channel_range_ratio,
        "input_absmax": stats.input_absmax,
        "outlier_ratio": stats.outlier_ratio,
        "scores": dict(scores),
        "sqnr_db": dict(sqnr),
    }
    if price is None or base is None or scheme is None:
        return row
    ms = price.layer_ms.get(base, {}).get(layer.name, {})
    size = price.layer_bytes[base][layer.name]
    float_ms, float_bytes = ms.get(base), price.layer_bytes["float32"][layer.name]["float32"]
    before = price.layer_ms["float32"][layer.name]["float32"]
    return {
        **row,
        "scheme": scheme,
        "why": why(layer, scheme, base, scores, ms, size, session),
        "ms": dict(ms),
        "bytes": dict(size),
        "ms_saved": before - ms[scheme] if scheme in ms else (before - float_ms if float_ms is not None else None),
        "bytes_saved": float_bytes - size[scheme],
        "score": scores.get(scheme, 0.0),
        "sqnr": sqnr.get(scheme),
    }


def why(
    layer: Layer,
    scheme: str,
    base: str,
    scores: Mapping[str, float],
    ms: Mapping[str, float],
    size: Mapping[str, int],
    session: Session,
) -> str:
    """The choice of a layer in one line, from its own figures."""
    if not session.allowed[layer.name]:
        return "kept: the search space allows nothing else"
    if SCHEMES[scheme].is_float:
        options = [name for name in session.allowed[layer.name] if name in ms]
        quickest = min(options, key=lambda name: ms[name], default=None)
        if quickest is not None and ms[quickest] >= ms[base] and session.settings.objective == "latency":
            return f"kept: no int8 scheme is faster here ({ms[quickest]:.3g} against {ms[base]:.3g} ms)"
        return "kept: its divergence costs more of the budget than its saving is worth"
    parts = []
    if scheme in ms and base in ms and ms[base] > 0:
        parts.append(f"{ms[base] / max(ms[scheme], 1e-9):.2g}× as fast as {base}")
    parts.append(f"{size[scheme] / max(size[base], 1):.2f} of its bytes")
    rivals = {name: scores[name] for name in session.allowed[layer.name] if name in scores}
    if rivals and scores.get(scheme, 0.0) <= min(rivals.values()) * 1.001:
        parts.append("smallest divergence of all its int8 schemes")
    elif project(SCHEMES[scheme], layer.kind).input is None:
        parts.append("weight only")
    return ", ".join(parts)


def _front(found: list[Candidate]) -> set[int]:
    """Numbers of the candidates that no other beats in both saving and divergence."""
    complete = [c for c in found if c.state == "complete"]

    def beaten(c: Candidate) -> bool:
        return any(
            o.saving >= c.saving
            and o.divergence <= c.divergence
            and (o.saving, -o.divergence) != (c.saving, -c.divergence)
            for o in complete
        )

    return {c.number for c in complete if not beaten(c)}
