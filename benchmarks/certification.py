"""Does the budget hold? Hundreds of resampled search → certify runs on real per-item outcomes, and how other tools judge.

The outcomes of every item under each of some forty maps are measured once (`certification_outcomes.py`; kept in --work). The
items are then the population: a map's true drop is its mean over all of them. Each run draws a search split and a certification
split from it with replacement, searches (the cheapest maps whose drop on the search split, with the margin that a search of
autoquant adds, fits the budget), freezes the ladder and certifies it, as `autoquant search` does: same ladder, same order, same
bounds, stop at the first map that does not pass.

- violated: share of all runs that ship a quantized map under a PASS although its true drop is above the budget. At most 5%.
- PASS: share of PASS among the judgements of maps whose true drop is below half the budget, where n suffices (the normal
  approximation says that n items have 80% power or more for this map's own drop and flips).
- drawn: items one by one; where the subject has clusters (docstrings of one source file), also whole clusters, with a search and
  a bound that count them, and with those that take items for independent.
- one split: the same splits in one, as other tools do it. The cheapest map whose measured drop fits the budget is shipped,
  and the figure it was chosen by is the figure that is reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from certification_outcomes import SUBJECTS, Outcomes, outcomes
from common import parser, table, write
from scipy import stats

from autoquant.certify import items_needed
from autoquant.certify.bounds import cluster_members, settled, unit_drops
from autoquant.errors import UsageError, pick
from autoquant.search import ladder
from autoquant.values import Budget, Candidate

SPLITS = ((400, 1000), (800, 3000), (2000, 10_000))
"""Items of the search split and of the certification split."""
MODES = (("items", False, False), ("clusters", True, True), ("clusters, not counted", True, False))
"""Name, whether splits are drawn in whole clusters, and whether search and bound know of them."""


def draw(found: Outcomes, size: int, rng: np.random.Generator, clustered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Items by chance, with replacement, and the number of the cluster each of them was drawn with.

    In clusters as many whole ones are drawn as have `size` items on average.
    """
    if not clustered:
        return rng.integers(0, found.values.shape[1], size), np.arange(size)
    assert found.clusters is not None
    members = cluster_members(found.clusters)
    chosen = rng.integers(0, len(members), max(2, round(size * len(members) / len(found.clusters))))
    return np.concatenate([members[one] for one in chosen]), np.repeat(
        np.arange(len(chosen)), [len(members[one]) for one in chosen]
    )


def one_run(
    found: Outcomes, budget: Budget, sizes: tuple[int, int], rungs: int, rng: np.random.Generator, clustered: bool,
    known: bool,
) -> dict[str, Any]:  # fmt: skip
    """One search and one certification on drawn splits; and the same items judged as one split.

    Args:
        clustered: splits are drawn in whole clusters.
        known: the search and the bound know which items belong together, as a task with clusters has it.
    """
    (search, search_own), (held, held_own) = (draw(found, size, rng, clustered) for size in sizes)
    if not known:
        search_own, held_own = np.arange(len(search)), np.arange(len(held))
    counts = np.bincount(held_own).astype(float)
    drops = found.values[0] - found.values
    confidence = budget.confidence or 0.95
    normal = float(stats.norm.ppf(confidence))
    candidates = []
    for number in range(1, len(found.labels)):
        seen = drops[number][search]
        error = float(np.sqrt((np.bincount(search_own, seen - seen.mean()) ** 2).sum())) / len(seen)
        expected = error * np.sqrt(len(search) / len(held))
        candidates.append(
            Candidate(
                number=number,
                label=found.labels[number],
                origin="drawn",
                base_dtype="bfloat16",
                layers={"all": "bfloat16" if found.labels[number] == "bfloat16" else "int8"},
                ms=float(found.cost[number]),
                bytes=int(1e6 * found.cost[number]),
                saving=2.0 / found.cost[number],
                drop=float(seen.mean()),
                error=error,
                margin=float(seen.mean()) + normal * expected - budget.drop,
                divergence=float(found.divergence[number]),
            )
        )
    judged = []
    shipped = None
    for candidate in sorted(ladder(candidates, rungs), key=lambda c: c.divergence):
        unit = np.bincount(held_own, unit_drops(drops[candidate.number][held], 1.0))  # drawn in a random order already
        passed = settled(unit, counts, 1.0, budget.drop, confidence) == "PASS"
        judged.append((candidate.number, passed))
        if not passed:
            break
        shipped = candidate.number
    together = np.concatenate([search, held])
    fits = [n for n in range(1, len(found.labels)) if drops[n][together].mean() <= budget.drop]
    cheapest = min(fits, key=lambda n: found.cost[n], default=None)
    return {"judged": judged, "shipped": shipped, "one_split": cheapest}


def summarise(
    found: Outcomes, budget: Budget, sizes: tuple[int, int], runs: list[dict[str, Any]], clustered: bool
) -> dict[str, Any]:
    drops = found.values[0] - found.values
    truth = drops.mean(1)
    units = found.clusters if clustered and found.clusters is not None else np.arange(drops.shape[1])
    deviation = [float(np.sqrt((np.bincount(units, own - own.mean()) ** 2).sum() / len(own))) for own in drops]

    def enough(number: int) -> bool:
        needed = items_needed(truth[number], deviation[number], budget.drop, budget.confidence or 0.95)
        return needed is not None and needed <= sizes[1]

    def violated(which: str) -> float:
        return float(np.mean([run[which] is not None and truth[run[which]] > budget.drop for run in runs]))

    easy = [
        passed for run in runs for number, passed in run["judged"] if truth[number] < budget.drop / 2 and enough(number)
    ]
    hard = [passed for run in runs for number, passed in run["judged"] if truth[number] > budget.drop]
    return {
        "budget": budget.drop,
        "search": sizes[0],
        "n": sizes[1],
        "violated %": 100 * violated("shipped"),
        "PASS of easy %": 100 * float(np.mean(easy)) if easy else None,
        "easy": len(easy),
        "PASS of bad %": 100 * float(np.mean(hard)) if hard else None,
        "bad": len(hard),
        "shipped %": 100 * float(np.mean([run["shipped"] is not None for run in runs])),
        "one split: violated %": 100 * violated("one_split"),
        "one split: shipped %": 100 * float(np.mean([run["one_split"] is not None for run in runs])),
    }


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument(
        "--only", nargs="+", default=list(SUBJECTS), metavar="NAME", help=f"of {', '.join(SUBJECTS)}"
    )
    arguments.add_argument("--runs", type=int, default=500, help="resampled runs for each row of the table")
    arguments.add_argument(
        "--budgets", type=float, nargs="+", default=[0.002, 0.004, 0.006, 0.01], help="allowed drops"
    )
    arguments.add_argument("--confidence", type=float, default=0.95, help="of the bounds")
    arguments.add_argument("--rungs", type=int, default=2, help="maps that may be certified in a run")
    arguments.add_argument("--work", type=Path, default=Path("certification-work"), help="folder of the outcomes")
    args = arguments.parse_args()
    try:
        names = [name for name in args.only if pick(SUBJECTS, name, "subject", UsageError)]
    except UsageError as error:
        arguments.error(str(error))
    everything = {}
    for name in names:
        found = outcomes(name, args.models, args.data, args.work, args.seed, args.threads)
        drops = (found.values[0] - found.values).mean(1)
        maps = [
            {"map": label, "true drop": float(drop), "changed": float(np.mean(row != found.values[0])), "cost": float(cost),
             "divergence": float(nats)}
            for label, drop, row, cost, nats in zip(
                found.labels, drops, found.values, found.cost, found.divergence, strict=True)
        ]  # fmt: skip
        print(f"\n{name}: {found.metric} {found.values[0].mean():.4f}, {found.values.shape[1]} items\n")
        print(table(maps, ["map", "true drop", "changed", "cost", "divergence"]))
        rows = []
        for drop in args.budgets:
            for sizes in SPLITS:
                budget, rng = Budget(drop, confidence=args.confidence), np.random.default_rng([args.seed, len(rows)])
                for drawn, clustered, known in MODES[: 1 if found.clusters is None else None]:
                    runs = [one_run(found, budget, sizes, args.rungs, rng, clustered, known) for _ in range(args.runs)]
                    rows.append({"drawn": drawn, **summarise(found, budget, sizes, runs, clustered)})
        print(f"\n{args.runs} runs a row, {args.confidence:.0%} confidence\n")
        print(table(rows, list(rows[0])))
        everything[name] = {"maps": maps, "rows": rows}
    write(args.json, {"runs": args.runs, "confidence": args.confidence, "subjects": everything})


if __name__ == "__main__":
    main()
