"""What racing saves: items read with racing / without, and stops that the whole split contradicts.

Of fixed maps: the item outcomes that `certification.py` keeps (`--outcomes FOLDER`, one of its --work folder's), raced in many
random splits and orders. Of whole searches on real models: the default strategy with racing and without.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.racing import Course
from autoquant.search.race import Order
from autoquant.values import Budget, Candidate
from benchmarks.common import need, table
from benchmarks.strategies.cases import Bench
from benchmarks.strategies.searches import run


@dataclass(frozen=True)
class Mean:
    """As much of a task as a race asks for: the mean of item values from 0 to 1, and how many are certified with."""

    certification: int
    mean_of_items: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    relative: bool = False
    higher_is_better: bool = True

    def items(self, split: str) -> int:
        return self.certification

    def clusters(self, split: str) -> None:
        return None

    def aggregate(self, split: str, values: np.ndarray, index: np.ndarray | None = None) -> float:
        return float(np.mean(values if index is None else values[index]))


def racing(args: Any) -> dict[str, Any]:
    fixed = []
    for folder in map(Path, args.outcomes):
        need(folder / "all.npz")
        with np.load(folder / "all.npz") as file:
            if "fragility" not in file:
                sys.exit(f"{folder} was kept by an earlier version of certification.py. Delete it, and run that again.")
            values, fragility = file["values"], file["fragility"]
        for items, budget in product(args.items, args.budgets):
            if items <= 0.8 * values.shape[1]:
                fixed.append({"of": folder.name, **_races(values, fragility, items, budget, args)})
    if fixed:
        print(table(fixed, list(fixed[0])), flush=True)
    whole = [_searches(name, args) for name in args.only]
    if whole:
        print("\nwhole searches")
        print(table(whole, list(whole[0])))
    return {"racing": fixed, "searches": whole}


def _races(values: np.ndarray, fragility: np.ndarray, items: int, budget: float, args: Any) -> dict[str, Any]:
    """Every map raced in `--orders` random splits and orders; what is left of the items, or as many, is certified with."""
    rng = np.random.default_rng(args.seed)
    task: Any = Mean(max(values.shape[1] - items, items))
    read: dict[bool, list[int]] = {True: [], False: []}
    wrong, off = 0, []
    for seed in range(args.orders):
        split = rng.permutation(values.shape[1])[:items]
        order = Order.by_fragility(fragility[split], seed) if len(fragility) else Order.by_chance(items, seed)
        course = Course(task, Budget(budget), values[0][split], order)
        for after in values[1:][:, split]:
            found, whole = course.run(after), course.figures(after, items)
            read[bool(whole.within)].append(found.items)
            wrong += found.within != whole.within
            off.append(found.drop - whole.drop)
    count = sum(map(len, read.values()))
    return {
        "maps": len(values) - 1,
        "items": items,
        "budget": budget,
        "races": count,
        "within": len(read[True]) / count,
        "read / items": sum(map(sum, read.values())) / count / items,
        "of maps within": float(np.mean(read[True])) / items if read[True] else None,
        "of maps beyond": float(np.mean(read[False])) / items if read[False] else None,
        "wrong stops": wrong / count,
        "drop - whole's": float(np.mean(off)),
    }


def _searches(name: str, args: Any) -> dict[str, Any]:
    """One search with racing and one without."""
    bench = Bench(name, args)
    found = {}
    refined = {True: 0, False: 0}

    def measure(base: str, layers: dict[str, str], race: bool) -> tuple[float, int]:
        nats, read = bench.measure(base, layers)
        refined[race] += read
        return nats, read

    for race in (True, False):
        evaluate, exact = partial(bench.evaluate, race=race), partial(measure, race=race)
        found[race] = run(bench.problem, evaluate, exact, "surrogate", False, args.seed, args.trials)
    judged = {race: [c for c in maps if c.state == "complete"] for race, maps in found.items()}
    items = {race: sum(c.items for c in maps) for race, maps in judged.items()}
    best = {race: max((c for c in maps if c.feasible), key=lambda c: c.saving, default=None)
            for race, maps in judged.items()}  # fmt: skip
    wrong = sum(c.feasible != (bench.evaluate(c.base_dtype, dict(c.layers), race=False).margin <= 0)
                for c in judged[True])  # fmt: skip
    return {
        "search": name,
        "items": bench.items,
        "maps: racing": len(judged[True]),
        "without": len(judged[False]),
        "skipped": sum(c.state == "skipped" for c in found[True]),
        "read / items of its maps": items[True] / len(judged[True]) / bench.items,
        "read / read without": (items[True] + refined[True]) / (items[False] + refined[False]),
        "wrong stops": wrong,
        "saving": _saving(best[True]),
        "without racing": _saving(best[False]),
        "same map": "yes" if _map(best[True]) == _map(best[False]) else "no",
    }


def _saving(candidate: Candidate | None) -> float | None:
    return None if candidate is None else candidate.saving


def _map(candidate: Candidate | None) -> Any:
    return None if candidate is None else (candidate.base_dtype, dict(candidate.layers))
