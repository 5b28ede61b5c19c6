"""A realistic report dictionary: a 6-layer MiniLM reranker, 40 layers × 19 schemes, certified at one point of nDCG.

Figures are made up but consistent with one another: sizes add up, the shipped map is on the ladder, activations with
one scale for a tensor hurt most, and the down projections have outliers.
"""

from __future__ import annotations

import random
from typing import Any

WEIGHTS = ("int8-channel-sym", "int8-channel-asym", "int8-tensor-sym", "int8-tensor-asym")
INPUTS = ("", "/a8-token", "/a8-tensor", "/a8-tensor-static")
FLOATS = ("float32", "bfloat16", "float16")
SCHEMES = (*FLOATS, *(weight + given for weight in WEIGHTS for given in INPUTS))
BEST = "int8-channel-sym/a8-token"
WIDTH, HIDDEN = 384, 1536
LINEARS = (
    ("attention.self.query", WIDTH, WIDTH, 1.0),
    ("attention.self.key", WIDTH, WIDTH, 1.1),
    ("attention.self.value", WIDTH, WIDTH, 3.0),
    ("attention.output.dense", WIDTH, WIDTH, 2.5),
    ("intermediate.dense", HIDDEN, WIDTH, 4.0),
    ("output.dense", WIDTH, HIDDEN, 9.0),
)


def full(blocks: int = 6) -> dict[str, Any]:
    """A PASS with every key; `blocks=36` gives 220 layers."""
    layers = _layers(blocks)
    schemes: dict[str, int] = {}
    for layer in layers:
        schemes[layer["scheme"]] = schemes.get(layer["scheme"], 0) + 1
    return {
        **_common(layers),
        "title": "ms-marco-MiniLM-L6-v2 on SciFact reranking",
        "verdict": "PASS",
        "budget": {"drop": 0.01, "relative": False, "confidence": 0.95},
        "metric": {
            "name": "nDCG@10",
            "higher_is_better": True,
            "float": 0.7412,
            "quantized": 0.7400,
            "half": 0.7411,
            "drop": 0.0012,
            "upper_bound": 0.00408,
            "lower_bound": -0.0016,
            "confidence": 0.95,
            "n": 2400,
            "method": "betting",
            "needed": None,
            "item": "query",
        },
        "half_dtype": "bfloat16",
        "base_dtype": "bfloat16",
        "shipped": "quantized",
        "latency_ms": {"float32": 41.82, "half": 27.94, "quantized": 19.91},
        "latency_noise_ms": {"float32": 0.61, "half": 0.38, "quantized": 0.29},
        "bytes": {"float32": 90_870_000, "half": 45_440_000, "quantized": 23_710_000},
        "peak_memory_bytes": {"float32": 412_000_000, "half": 337_000_000, "quantized": 298_000_000},
        "schemes": schemes,
        "search": _search(),
        "certification": [
            {
                "label": "bfloat16",
                "status": "PASS",
                "drop": 0.0001,
                "upper_bound": 0.0019,
                "lower_bound": -0.0015,
                "n": 2400,
            },
            {
                "label": "int8 on 24",
                "status": "PASS",
                "drop": 0.0007,
                "upper_bound": 0.0031,
                "lower_bound": -0.0017,
                "n": 2400,
            },
            {
                "label": "int8 on 38",
                "status": "PASS",
                "drop": 0.0012,
                "upper_bound": 0.00408,
                "lower_bound": -0.0016,
                "n": 2400,
            },
            {
                "label": "int8 on 40, tensor",
                "status": "INCONCLUSIVE",
                "drop": 0.0078,
                "upper_bound": 0.0119,
                "lower_bound": 0.0037,
                "n": 2400,
            },
        ],
        "load": 'from autoquant import load\nmodel = load("checkpoint/")',
        "files": {"checkpoint": "checkpoint/", "layer_map": "layer_map.yaml", "report": "report.html"},
    }


def profile_only() -> dict[str, Any]:
    """What `autoquant profile` leaves: no verdict, no prices, nothing chosen."""
    layers = _layers(6)
    for layer in layers:
        for key in ("scheme", "why", "ms", "bytes", "ms_saved", "bytes_saved", "score", "sqnr"):
            del layer[key]
    report = {**_common(layers), "title": "ms-marco-MiniLM-L6-v2"}
    report["stages"] = {"profile": 8.4}
    return report


def _common(layers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "created": "2026-03-14 09:26 UTC",
        "layers": layers,
        "shape": {"batch_size": 32, "seq_len": 128},
        "threads": 16,
        "hardware": "AMD EPYC 9654, 16 of 96 cores",
        "runtime": "torch",
        "skipped": [
            *(
                {
                    "name": f"bert.encoder.layer.{i}.{part}.LayerNorm",
                    "type": "LayerNorm",
                    "params": 768,
                    "reason": "normalisation stays in the base dtype",
                }
                for i in range(6)
                for part in ("attention.output", "output")
            ),
            {
                "name": "bert.embeddings.token_type_embeddings",
                "type": "Embedding",
                "params": 768,
                "reason": "two rows: scales would cost more than int8 saves",
            },
        ],
        "profile": {"method": "fisher", "rows": 160, "forwards": 6.2, "seconds": 8.4},
        "smoothing": {"pairs": 36, "smoothed": 28, "error_left": 0.745},
        "stages": {"profile": 8.4, "price": 41.7, "search": 303.5, "checkpoint": 1.2, "certify": 96.3, "report": 0.2},
        "model": {
            "name": "cross-encoder/ms-marco-MiniLM-L6-v2",
            "class": "BertForSequenceClassification",
            "params": 22_713_601,
            "fingerprint": "9c1f0b7de2a34856",
        },
        "task": {
            "task": "rerank",
            "metric": "ndcg@10",
            "items": {"calibration": 160, "search": 600, "certification": 2400},
        },
        "notes": ["The machine was shared: 2 of 3 timing rounds were repeated because their noise was above 3%."],
        "versions": {
            "autoquant": "0.1.0",
            "torch": "2.9.1",
            "transformers": "5.0.0",
            "optuna": "5.0.0",
            "python": "3.11.7",
        },
    }


def _layers(blocks: int) -> list[dict[str, Any]]:
    dice = random.Random(7)
    made = [
        _layer(dice, "bert.embeddings.word_embeddings", "embedding", 30522, WIDTH, 1.4),
        _layer(dice, "bert.embeddings.position_embeddings", "embedding", 512, WIDTH, 0.2),
    ]
    for block in range(blocks):
        for name, out, into, weight in LINEARS:
            depth = 1.6 ** (block % 6)
            made.append(_layer(dice, f"bert.encoder.layer.{block}.{name}", "linear", out, into, weight * depth))
    made.append(_layer(dice, "bert.pooler.dense", "linear", WIDTH, WIDTH, 40.0))
    made.append(_layer(dice, "classifier", "linear", 1, WIDTH, 900.0))
    return made


def _layer(dice: random.Random, name: str, kind: str, out: int, into: int, weight: float) -> dict[str, Any]:
    params = out * into
    schemes = [scheme for scheme in SCHEMES if kind != "embedding" or "/" not in scheme]
    outlier = dice.uniform(6, 40) if name.endswith("output.dense") and "attention" not in name else dice.uniform(1.5, 4)
    scores, sqnr, ms, size = {}, {}, {}, {}
    for scheme in schemes:
        factor = _harm(scheme, outlier)
        scores[scheme] = 0.0 if scheme == "float32" else weight * factor * 1e-6 * dice.uniform(0.7, 1.4)
        sqnr[scheme] = None if scheme == "float32" else 44 - 9 * factor**0.25 + dice.uniform(-1.5, 1.5)
        ms[scheme] = min(params, 600_000) * _speed(scheme) * 1e-6 * dice.uniform(0.95, 1.05)
        scales = 0 if scheme in FLOATS else 4 * (out if "channel" in scheme else 1)
        size[scheme] = params * (4 if scheme == "float32" else 2 if scheme in FLOATS else 1) + scales
    scheme = next((one for one in (BEST, "int8-channel-sym") if one in schemes and scores[one] < 1.2e-4), "bfloat16")
    return {
        "name": name,
        "kind": kind,
        "shape": [out, into],
        "params": params,
        "group": name,
        "scheme": scheme,
        "why": "every int8 scheme costs more nats than its time is worth"
        if scheme == "bfloat16"
        else f"fastest of {len(schemes)} whose score fits the allowance",
        "weight_min": -dice.uniform(0.3, 1.2),
        "weight_max": dice.uniform(0.3, 1.2),
        "weight_kurtosis": dice.uniform(0.1, 5),
        "channel_range_ratio": dice.uniform(1.3, 6),
        "input_absmax": None if kind == "embedding" else outlier * dice.uniform(0.8, 1.6),
        "outlier_ratio": None if kind == "embedding" else outlier,
        "scores": scores,
        "sqnr_db": sqnr,
        "ms": ms,
        "bytes": size,
        "ms_saved": ms["float32"] - ms[scheme],
        "bytes_saved": size["float32"] - size[scheme],
        "score": scores[scheme],
        "sqnr": sqnr[scheme],
    }


def _harm(scheme: str, outlier: float) -> float:
    harm = {"float32": 0.0, "bfloat16": 0.02, "float16": 0.001}.get(scheme, 1.0)
    harm *= 4.0 if "tensor-sym" in scheme or "tensor-asym" in scheme else 1.0
    harm *= 0.8 if "-asym" in scheme else 1.0
    harm += 2.0 if scheme.endswith("a8-token") else 0.0
    harm += 1.2 * outlier if scheme.endswith("a8-tensor") else 0.0
    return harm + (2.5 * outlier if scheme.endswith("static") else 0.0)


def _speed(scheme: str) -> float:
    if scheme in FLOATS:
        return {"float32": 3.0, "bfloat16": 1.9, "float16": 2.0}[scheme]
    return {"": 2.2, "/a8-token": 1.1, "/a8-tensor": 1.08, "/a8-tensor-static": 1.04}[
        scheme[scheme.find("/") :] if "/" in scheme else ""
    ]


def _search() -> dict[str, Any]:
    dice = random.Random(3)
    seeds = [
        ("float32", 41.8, 90.87, 0.0),
        ("bfloat16", 27.9, 45.44, 0.0002),
        ("float16", 29.0, 45.44, 0.0001),
        ("uniform int8-channel-sym", 31.2, 23.0, 0.0009),
        (f"uniform {BEST}", 19.2, 23.0, 0.0121),
        ("uniform int8-tensor-sym/a8-tensor", 18.6, 22.8, 0.0610),
        ("uniform int8-tensor-sym/a8-tensor-static", 18.1, 22.8, 0.214),
    ]
    candidates: list[dict[str, Any]] = []
    for label, ms, megabytes, drop in seeds:
        candidates.append({"label": label, "origin": "enqueued", "ms": ms, "bytes": int(megabytes * 1e6), "drop": drop})
    for number in range(34):
        speed = dice.uniform(0, 1)
        drop = 0.0005 + 0.012 * speed**2.2 + dice.gauss(0, 0.0011)
        megabytes = 23.2 + 16 * (1 - speed) ** 1.5 + dice.uniform(0, 1)
        candidates.append(
            {
                "label": f"proposal {number + 1}",
                "origin": "surrogate",
                "ms": 27 - 8 * speed,
                "bytes": int(megabytes * 1e6),
                "drop": drop,
            }
        )
    candidates[20].update(label="int8 on 38", ms=19.9, bytes=23_710_000, drop=0.0031, shipped=True, certified="PASS")
    candidates[30].update(drop=None, state="FAIL", reason="out of memory at batch 32; 16 was tried as well")
    for number, one in enumerate(candidates):
        drop = one["drop"]
        observed = None if drop is None else max(1e-7, abs(drop) * 0.02)
        one.setdefault("state", "PRUNED" if drop is not None and drop > 0.01 else "COMPLETE")
        one.setdefault("reason", "the budget was excluded after 192 items" if one["state"] == "PRUNED" else None)
        one.setdefault("certified", None)
        one.setdefault("shipped", False)
        one.update(
            number=number,
            base_dtype="float32" if one["label"] == "float32" else "bfloat16",
            divergence=observed,
            predicted_divergence=None if observed is None else observed * dice.uniform(0.85, 1.2),
            saving=41.8 - one["ms"],
            feasible=None if drop is None else drop <= 0.01,
            on_front=drop is not None
            and not any(other["ms"] < one["ms"] and (other["drop"] or 9) <= drop for other in candidates),
        )
    return {
        "trials": len(candidates),
        "full_evaluations": 22,
        "items_evaluated": 15_872,
        "seconds": 303.5,
        "failed": 1,
        "objective": "latency",
        "seed": 0,
        "candidates": candidates,
    }
