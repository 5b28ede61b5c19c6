"""Full-evaluation equivalents (items read / items of the search split) until a strategy has 99% of the best saving.

The best is that of any strategy's maps that are within the budget on the whole split, on real models with the layers that
they have.
"""

from __future__ import annotations

from typing import Any

from autoquant import artifacts
from autoquant.search import Outcome
from benchmarks.common import table
from benchmarks.strategies.cases import Bench
from benchmarks.strategies.searches import label, run, runs


def speed(args: Any) -> dict[str, Any]:
    every = {}
    for name in args.only:
        bench = Bench(name, args)
        curves: dict[str, list[list[float]]] = {}
        for strategy, cold in runs(args.strategies):
            path = bench.folder / f"{label(strategy, cold)}-{args.trials}-{args.seed}.json"
            if not path.is_file():
                artifacts.write_json(path, {"curve": _curve(bench, strategy, cold, args)})
            curves[label(strategy, cold)] = artifacts.read_json(path)["curve"]
        best = max((point[1] for curve in curves.values() for point in curve), default=0.0)
        rows = [
            {
                "case": name,
                "run": key,
                "full evaluations to 99%": next(
                    (round(cost, 2) for cost, s in curve if best and s >= 0.99 * best), None
                ),
                "spent in all": round(curve[-1][0], 2) if curve else 0.0,
                "maps": len(curve),
                "best, of the best known": max((s for _, s in curve), default=0.0) / best if best else None,
            }
            for key, curve in curves.items()
        ]
        print(f"\n{name}: {len(bench.problem.groups)} groups, {bench.items} items; best saving {best:.3f}×")
        print(table(rows, list(rows[0])), flush=True)
        every[name] = rows
    return {"speed": every}


def _curve(bench: Bench, strategy: str, cold: bool, args: Any) -> list[tuple[float, float]]:
    """(full-evaluation equivalents spent, best saving within the budget of the whole split) after each evaluation.

    The whole split is read only of maps that would be the best, and is not counted: the search is not told.
    """
    curve: list[tuple[float, float]] = []

    def evaluate(base: str, layers: dict[str, str]) -> Outcome:
        told, saved = bench.evaluate(base, layers), bench.saving(base, layers)
        spent, best = curve[-1] if curve else (0.0, 0.0)
        if saved > best and bench.evaluate(base, layers, race=False).margin <= 0:
            best = saved
        curve.append((spent + told.items / bench.items, best))
        return told

    def measure(base: str, layers: dict[str, str]) -> tuple[float, int]:
        nats, read = bench.measure(base, layers)
        spent, best = curve[-1]
        curve.append((spent + read / bench.items, best))
        return nats, read

    run(bench.problem, evaluate, measure, strategy, cold, args.seed, args.trials)
    return curve
