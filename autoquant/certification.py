"""The certification of a run: maps measured in fresh processes on held-out data, judged, one of them shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoquant.certify.judge import judge
from autoquant.certify.ledger import Charge
from autoquant.finals import Finals
from autoquant.fresh import checkpoint_of, key_of, load_values, measure
from autoquant.reuse import charge_run
from autoquant.search import ladder, preferred
from autoquant.session import Session
from autoquant.values import Candidate, LayerMap, Verdict


@dataclass(frozen=True)
class Rung:
    """A map that was judged on the certification data; the float32 model, which it is compared with, without any test."""

    candidate: Candidate
    layer_map: LayerMap
    verdict: Verdict
    metric: float
    peak_memory_bytes: int | None
    path: Path

    @property
    def label(self) -> str:
        return self.candidate.label

    @property
    def passed(self) -> bool:
        return self.verdict.status == "PASS"


@dataclass(frozen=True)
class Certified:
    """The answer of certification: all rungs tested, in order, the one that the report is about, the one that is shipped."""

    rungs: tuple[Rung, ...]
    judged: Rung
    shipped: Rung
    status: str
    latency_ms: Mapping[str, float]
    latency_noise_ms: Mapping[str, float]
    peak_memory_bytes: Mapping[str, int | None]


def certify_stage(session: Session, finals: Finals, half: str) -> Certified:
    """Test maps on the certification split, safe → aggressive, and ship the best that may be.

    The order is fixed before the certification data is touched: quantized maps, the smallest divergence on the search split
    first, then half precision where it is better than float32. Testing stops at the first rung that does not pass
    (fixed-sequence testing, so that all rungs share one error rate). Whatever passed may be shipped, and so may float32,
    which drops nothing by definition; of these the one that the objective prefers is. If none passed, half precision is,
    provided that it did not fail either. That needs no proof, so it comes last: first, it could only end the tests, for on
    few items even bfloat16 may be INCONCLUSIVE. Behind a map that did not pass, nothing is claimed of it but a failure.
    """
    objective = session.settings.objective
    plain = next(c for c in finals.candidates if c.base_dtype == "float32" and not c.quantized)
    halves = [c for c in finals.candidates if c.base_dtype == half and not c.quantized]
    halves = [c for c in halves if preferred([plain, c], objective) is c]
    quantized = sorted(ladder(finals.candidates, session.settings.rungs, objective), key=lambda c: c.divergence)
    tested = [*quantized, *halves]
    reference = measure(session, "float32", None)
    charged = charge_run(session, [finals.maps[c.number] for c in tested])
    rungs: list[Rung] = []
    for candidate in tested:
        ended = not all(rung.passed for rung in rungs)
        if not ended or candidate in halves:
            rungs.append(_test(session, candidate, finals.maps[candidate.number], reference, charged, ended))
    floats = _unchanged(session, plain, finals.maps[plain.number], reference)
    shipped = choose([floats, *rungs], objective)
    judged, status = answer(rungs, shipped)
    if status == "PASS" and not shipped.candidate.quantized:
        session.progress.note(does_not_pay(finals.candidates, shipped.candidate))
    half_peak = next((rung.peak_memory_bytes for rung in rungs if rung.candidate in halves), None)
    return Certified(
        rungs=tuple(rungs),
        judged=judged,
        shipped=shipped,
        status=status,
        latency_ms=_named(finals.latency_ms, judged),
        latency_noise_ms=_named(finals.noise_ms, judged),
        peak_memory_bytes={
            "float32": reference["peak_memory_bytes"],
            "half": half_peak,
            "quantized": judged.peak_memory_bytes,
        },
    )


def choose(may: Sequence[Rung], objective: str) -> Rung:
    """What is shipped: the best of the rungs that passed; if none but float32 did, a half precision that did not fail."""
    allowed = [rung for rung in may if rung.passed]
    if len(allowed) == 1:
        allowed += [rung for rung in may if not rung.candidate.quantized and rung.verdict.status == "INCONCLUSIVE"]
    best = preferred([rung.candidate for rung in allowed], objective)
    return next(rung for rung in allowed if rung.candidate is best)


def answer(rungs: Sequence[Rung], shipped: Rung) -> tuple[Rung, str]:
    """The rung that the report is about, and the status of the run.

    That is the map shipped; or, where a float model is shipped instead of a quantized map, that map: the one that did not
    pass if there is one.
    """
    open_ = next((rung for rung in rungs if not rung.passed), None)
    if shipped.candidate.quantized:
        return shipped, "PASS"
    if open_ is not None:
        quantized = [rung for rung in rungs if rung.candidate.quantized]
        return (open_ if open_ in quantized or not quantized else quantized[0]), open_.verdict.status
    return shipped, "PASS"


def does_not_pay(candidates: Sequence[Candidate], shipped: Candidate) -> str:
    """Why no quantized map is shipped although nothing failed."""
    quantized = [c for c in candidates if c.quantized and c.feasible]
    if not quantized:
        return f"No quantized map met the budget on the search split; {shipped.label} is shipped."
    best = min(quantized, key=lambda c: c.ms)
    return (
        f"Quantizing does not pay on this machine: the fastest quantized map within the budget ({best.label}) takes "
        f"{best.ms:.3g} ms and {best.bytes / 1e6:.1f} MB, {shipped.label} {shipped.ms:.3g} ms and "
        f"{shipped.bytes / 1e6:.1f} MB, both run by autoquant."
    )


def _test(
    session: Session, candidate: Candidate, layer_map: LayerMap, reference: Mapping[str, Any], charged: Charge,
    ended: bool = False,
) -> Rung:  # fmt: skip
    """`ended`: the sequence of tests is over, and a PASS would be one test too many."""
    path = checkpoint_of(session, layer_map)
    found = measure(session, f"map-{key_of(layer_map)}", path)
    verdict = judge(
        session.task, "certification", load_values(reference), load_values(found), session.budget,
        seed=session.settings.seed, confidence=charged.confidence,
    )  # fmt: skip
    verdict = replace(verdict, use=charged.number)
    if ended and verdict.status == "PASS":
        verdict = replace(verdict, status="INCONCLUSIVE")
        session.progress.note(
            f"{candidate.label} was measured after a map that did not pass: that it does is no claim."
        )
    session.progress.say(
        f"  certify {candidate.label}: {verdict.status}, drop {verdict.drop:+.5f}, at most {verdict.upper_bound:.5f}"
    )
    return Rung(candidate, layer_map, verdict, found["metric"], found["peak_memory_bytes"], path)


def _unchanged(session: Session, candidate: Candidate, layer_map: LayerMap, reference: Mapping[str, Any]) -> Rung:
    value = reference["metric"]
    verdict = Verdict(
        status="PASS", metric=session.task.metric, float_value=value, quantized_value=value, drop=0.0, upper_bound=0.0,
        lower_bound=0.0, confidence=session.budget.confidence, n=reference["items"],
        method="none needed: the float32 model itself", needed=None,
    )  # fmt: skip
    path = checkpoint_of(session, layer_map)
    return Rung(candidate, layer_map, verdict, value, reference["peak_memory_bytes"], path)


def _named(figures: Mapping[str, float], judged: Rung) -> dict[str, float]:
    return {
        "float32": figures["float32"],
        "half": figures["half"],
        "quantized": figures[str(judged.candidate.number)],
    }
