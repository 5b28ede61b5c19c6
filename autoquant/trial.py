"""Judge one map on the search split: paired drop, divergence, and latency end to end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy import stats

from autoquant.certify.judge import drop_error, excess, paired_drop
from autoquant.evaluation import Evaluation, evaluate_split, forward_call, time_models
from autoquant.profile.fisher import divergence
from autoquant.search import Outcome
from autoquant.session import Session
from autoquant.values import Price

KEPT_OUTPUTS = 512 * 2**20
"""Bytes of float outputs kept to measure the divergence of each trial; batches beyond are judged by the metric alone."""


def make_evaluate(
    session: Session, price: Price, update: Callable[[int, int], None]
) -> Callable[[str, dict[str, str]], Outcome]:
    """The function that judges a map on the search split: paired drop, divergence, and latency end to end."""
    s, task, budget = session.settings, session.task, session.budget
    outputs: dict[int, torch.Tensor] = {}
    room = KEPT_OUTPUTS

    def keep(number: int, output: torch.Tensor, batch: Any) -> None:
        nonlocal room
        size = output.numel() * output.element_size()
        if room >= size or not outputs:
            outputs[number], room = output, room - size

    base: Evaluation = evaluate_split(
        session.model, task, "search", batch_size=s.eval_batch_size, is_reference=True, observe=keep, progress=update,
        notify=session.progress.note,
    )  # fmt: skip
    certification = task.items("certification")
    minutes = base.seconds * (0.6 * s.trials + 2.5 * task.rows("certification") / task.rows("search")) / 60 + 1
    session.progress.say(f"  about {minutes:.0f} more minutes if all {s.trials} trials are needed")
    normal = stats.norm.ppf(budget.confidence) if budget.confidence else 0.0
    example = task.example(session.batch_size, session.seq_len)
    anchor = forward_call(session.model, task, example)

    def evaluate(base_dtype: str, layers: dict[str, str]) -> Outcome:
        model = session.assembler.assemble(layers, base_dtype)
        sums = [0.0, 0]

        def compare(number: int, output: torch.Tensor, batch: Any) -> None:
            if number in outputs and outputs[number].shape == output.shape:
                found = divergence(output, outputs[number], task.output_kind)
                mask = task.mask(batch) if task.positions else None
                found = found if mask is None else found[mask]
                sums[0] += found.sum().item()
                sums[1] += found.numel()

        result = evaluate_split(
            model,
            task,
            "search",
            batch_size=base.batch_size,
            reference=base.reduced,
            observe=compare,
            notify=session.progress.note,
        )
        drop = paired_drop(task, "search", base.values, result.values, budget)
        error = drop_error(task, "search", base.values, result.values, budget)
        expected = error * math.sqrt(len(result.values) / max(1, certification))
        times = time_models(
            {"map": forward_call(model, task, example), "anchor": anchor},
            rounds=7,
            warmup=1,
            max_seconds=3.0,
            rest_seconds=session.runtime.rest_seconds,
        )
        return Outcome(
            drop=drop,
            error=error,
            margin=excess(drop + normal * expected, budget),
            divergence=sums[0] / max(1, sums[1]),
            ms=times["map"][0] / times["anchor"][0] * price.model_ms["float32"],
            noise=times["map"][1] / times["map"][0],
            items=len(result.values),
        )

    return evaluate
