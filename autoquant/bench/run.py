"""Time all shapes in turns: every round runs each of them once, in a new order, so that drift hits all alike."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autoquant import artifacts
from autoquant.bench.judge import best, point
from autoquant.bench.processes import Worker
from autoquant.bench.shapes import Shape, check_counts, check_threads, lengths_for
from autoquant.errors import UsageError

ROUNDS = 10
"""Rounds of every shape: enough to see whether they agree."""

Say = Callable[[str], None]
Advance = Callable[[int, int], None]


def run_bench(
    path: Path,
    *,
    batch_sizes: Sequence[int],
    seq_lens: Sequence[int] | None,
    threads: Sequence[int],
    seconds: float,
    seed: int = 0,
    trust_remote_code: bool = False,
    say: Say = lambda text: None,
    advance: Advance = lambda done, total: None,
) -> dict[str, Any]:
    """Measure a checkpoint folder, float or quantized, on random inputs.

    Args:
        seconds: of timing for each shape, in `ROUNDS` rounds; a slow shape takes longer, since it is called once a round.
        seed: of the order of shapes.

    Returns:
        kind, hardware, bytes, `points` (see `judge.Point`), `best` (see `judge.Best`), `noisy`.

    Raises:
        UsageError: a setting that cannot work, or inputs that cannot be made up.
        AutoquantError: the checkpoint cannot be loaded, or a process ended.
    """
    sizes, counts = check_counts(batch_sizes, "--batch-sizes"), check_threads(threads)
    if not seconds > 0:
        raise UsageError(f"--seconds must be positive, not {seconds:g}.")
    begin = time.perf_counter()
    with ExitStack() as stack:
        folder = stack.enter_context(artifacts.scratch_folder())
        workers = {}
        for number in counts:
            say(f"  loading {path} in a process of {number} thread{'s' if number > 1 else ''} …")
            worker = Worker(path, number, folder, trust_remote_code=trust_remote_code)
            workers[number] = stack.enter_context(worker)
        hello = workers[counts[0]].hello
        lengths = lengths_for(seq_lens, hello["kind"], hello["longest"])
        # From small to large: the memory that a process has held at most is then that of the shape it ran last.
        order = sorted(itertools.product(sizes, lengths), key=lambda one: (one[0] * (one[1] or 1), one[0]))
        shapes = [Shape(number, length, size) for number in counts for size, length in order]
        ready = {}
        for done, shape in enumerate(shapes):
            ready[shape] = workers[shape.threads].ask("prepare", batch_size=shape.batch_size, seq_len=shape.seq_len)
            advance(done + 1, len(shapes) * (ROUNDS + 1))
        expected = sum(max(seconds, ROUNDS * 1e-3 * answer["ms"]) for answer in ready.values())
        say(f"  timing {len(shapes)} shapes, {ROUNDS} rounds: about {expected:.0f} s")
        found = _rounds(workers, shapes, seconds / ROUNDS, seed, advance)
    points = [
        point(
            shape,
            [answer["ms"] for answer in found[shape]],
            [answer["waited"] for answer in found[shape]],
            ready[shape]["peak_bytes"],
        )
        for shape in sorted(shapes)
    ]
    groups = itertools.groupby(points, key=lambda one: (one.threads, one.seq_len))
    answers = [best(list(group)) for _, group in groups]
    return {
        "kind": hello["kind"],
        "hardware": hello["hardware"],
        "bytes": artifacts.folder_bytes(path),
        "load_seconds": hello["load_seconds"],
        "points": [asdict(one) | {"noisy": one.noisy} for one in points],
        "best": [answer.to_dict() for answer in answers],
        "noisy": any(answer.reason for answer in answers),
        "seconds": time.perf_counter() - begin,
    }


def _rounds(
    workers: dict[int, Worker], shapes: Sequence[Shape], seconds: float, seed: int, advance: Advance
) -> dict[Shape, list[dict[str, Any]]]:
    found: dict[Shape, list[dict[str, Any]]] = {shape: [] for shape in shapes}
    shuffled, done = random.Random(seed), len(shapes)
    for _ in range(ROUNDS):
        for shape in shuffled.sample(shapes, len(shapes)):
            request = {"batch_size": shape.batch_size, "seq_len": shape.seq_len, "seconds": seconds}
            found[shape].append(workers[shape.threads].ask("round", **request))
            done += 1
            advance(done, len(shapes) * (ROUNDS + 1))
    return found
