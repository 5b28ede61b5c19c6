"""Does the price model say the truth? Milliseconds that it predicts for random maps against measured ones, end to end.

For each model and shape the price stage runs as it does in a search. Then maps that draw a scheme for every layer at random
are predicted (`Price.ms_of`) and measured: assembled and served as a checkpoint is, with the graph and its fused kernels. All
maps take turns, in a new order each round, and with them those that the price stage itself has timed (none of the others is one
of these): they tell how far the machine has moved since.
"""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import need, parser, table, write
from scipy.stats import spearmanr
from tqdm import tqdm

from autoquant.errors import UsageError, pick
from autoquant.evaluation import forward_call, spread
from autoquant.price import measure_price
from autoquant.price.in_situ import offered, sample_maps
from autoquant.profile import input_ranges
from autoquant.schemes import SCHEMES, project
from autoquant.session import Progress, Session
from autoquant.settings import Settings
from autoquant.tasks.base import batches
from autoquant.values import Price

CALLS_FOR_MS = 40.0
"""A round of a map is as many calls as take about this long, three at least; its time is their median."""


@dataclass(frozen=True)
class Case:
    """A model, data for it, and the shapes: (batch size, tokens), tokens None for images."""

    task: str
    data: str
    shapes: tuple[tuple[int, int | None], ...]


CASES = {
    "minilm": Case("sts", "stsb/stsb-en-dev.csv", ((1, 16), (1, 128), (8, 128))),
    "dinov2-cifar10": Case("image-classification", "cifar10/cifar10_subset.npz", ((1, None), (4, None), (8, None))),
    "smollm2": Case("causal-lm", "wikitext2/valid.txt", ((1, 16), (1, 128), (1, 512))),
}
PALETTES = (1, 2, 4, 16)
"""A map draws its schemes from a palette of so many, and the base dtype: maps of a search are mostly of few schemes."""


@dataclass(frozen=True)
class Map:
    base_dtype: str
    palette: int
    layers: dict[str, str]


def random_maps(session: Session, bases: list[str], count: int, seed: int) -> list[Map]:
    """`count` maps, palettes and base dtypes in turn."""
    draw, found = random.Random(f"judged {seed}"), []  # not the maps that the price stage itself draws
    for number in range(count):
        base, size = bases[number % len(bases)], PALETTES[number // len(bases) % len(PALETTES)]
        schemes = sorted({name for names in session.allowed.values() for name in names})
        palette = [*draw.sample(schemes, min(size, len(schemes))), base]
        layers = {}
        for group in session.groups:
            chosen = SCHEMES[draw.choice(palette)]
            fits = all(project(chosen, x.kind).name in (base, *session.allowed[x.name]) for x in group.layers)
            for layer in group.layers:
                layers[layer.name] = project(chosen, layer.kind).name if fits else base
        found.append(Map(base, size, layers))
    return found


def own_maps(session: Session, price: Price) -> list[Map]:
    """Those that the price stage has timed."""
    return [
        Map(base, 0, layers)
        for base, rows in price.layer_ms.items()
        for layers in sample_maps(session.groups, offered(rows), base)
    ]


def measure(session: Session, maps: list[Map], rounds: int, seed: int) -> list[tuple[float, float]]:
    """Median ms and half the interquartile range of each map, in turns."""
    example = session.task.example(session.batch_size, session.seq_len)
    times: list[list[float]] = [[] for _ in maps]
    draw = random.Random(seed)
    for _ in tqdm(range(rounds), desc="rounds", leave=False, disable=None):
        for place in draw.sample(range(len(maps)), len(maps)):
            model = session.assembler.assemble(maps[place].layers, maps[place].base_dtype)
            times[place].append(_round(forward_call(model, session.task, example)))
    return [spread(one) for one in times]


def _round(call: Any) -> float:
    for _ in range(2):  # the first lowers the graph, the second records small inputs
        call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < CALLS_FOR_MS:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return float(np.median(times))


def run_case(name: str, case: Case, args: Any) -> list[dict[str, Any]]:
    need(args.models / name, args.data / case.data)
    settings = Settings(
        model=str(args.models / name), task=case.task, data=str(args.data / case.data), seed=args.seed,
        threads=args.threads,
    )  # fmt: skip
    session = Session(settings, Path(tempfile.gettempdir()), Progress(quiet=True))
    with input_ranges(session.model, session.inventory.layers) as ranges, torch.no_grad():
        for rows in batches(session.task, "calibration", 16)[:4]:
            session.task.forward(session.model, session.task.batch("calibration", rows))
    session.assembler.input_absmax.update({layer: item.absmax for layer, item in ranges.items()})
    session.assembler.outliers.update({layer: item.outliers for layer, item in ranges.items()})
    found = []
    for batch_size, seq_len in case.shapes:
        session.settings = replace(settings, batch_size=batch_size, seq_len=seq_len)
        price = measure_price(
            session.model, session.task, session.inventory, session.assembler, session.allowed,
            tuple(dict.fromkeys(("float32", *session.space.base_dtypes))), batch_size=batch_size, seq_len=seq_len,
            groups=session.groups,
        )  # fmt: skip
        maps, own = random_maps(session, list(price.layer_ms), args.maps, args.seed), own_maps(session, price)
        measured = measure(session, [*maps, *own], args.rounds, args.seed)
        found.append(
            judge(name, session, price, maps, measured[: len(maps)], movement(price, own, measured[len(maps) :]))
        )
        print(table([found[-1]], COLUMNS), flush=True)
    return found


def movement(price: Price, own: list[Map], measured: list[tuple[float, float]]) -> dict[str, float]:
    """Base dtype → times of the maps that prices were fitted to over what they took then, the median."""
    ratios: dict[str, list[float]] = {}
    for one, (ms, _) in zip(own, measured, strict=True):
        ratios.setdefault(one.base_dtype, []).append(ms / price.ms_of(one.base_dtype, one.layers))
    return {base: float(np.median(found)) for base, found in ratios.items()}


def judge(
    name: str, session: Session, price: Price, maps: list[Map], measured: list[tuple[float, float]], moved: dict[str, float]
) -> dict[str, Any]:  # fmt: skip
    """The figures of one shape."""
    predicted = [price.ms_of(one.base_dtype, one.layers) for one in maps]
    errors = [100 * (p / ms - 1) for p, (ms, _) in zip(predicted, measured, strict=True)]
    still = [
        100 * (moved[one.base_dtype] * p / ms - 1) for one, p, (ms, _) in zip(maps, predicted, measured, strict=True)
    ]
    return {
        "model": name,
        "shape": str(session.batch_size) + (f"x{session.seq_len}" if session.seq_len else ""),
        "maps": len(maps),
        "error %": float(np.mean(np.abs(errors))),
        "worst %": float(np.max(np.abs(errors))),
        "bias %": float(np.mean(errors)),
        "rank": float(spearmanr(predicted, [ms for ms, _ in measured]).statistic),
        "still %": float(np.mean(np.abs(still))),
        "noise %": float(np.median([100 * noise / ms for ms, noise in measured])),
        "moved %": 100 * (float(np.mean(list(moved.values()))) - 1),
        "price s": price.seconds,
        "details": [
            {"base_dtype": one.base_dtype, "palette": one.palette, "predicted_ms": p, "measured_ms": ms,
             "noise_ms": noise, "error_percent": error}
            for one, p, (ms, noise), error in zip(maps, predicted, measured, errors, strict=True)
        ],
    }  # fmt: skip


COLUMNS = ("model", "shape", "maps", "error %", "still %", "worst %", "bias %", "rank", "noise %", "moved %", "price s")


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--only", nargs="+", default=["minilm"], metavar="NAME", help=f"of {', '.join(CASES)}")
    arguments.add_argument("--maps", type=int, default=20, help="random maps of each shape")
    arguments.add_argument("--rounds", type=int, default=7, help="turns of each map")
    args = arguments.parse_args()
    try:
        cases = {name: pick(CASES, name, "model", UsageError) for name in args.only}
    except UsageError as error:
        arguments.error(str(error))
    rows = [row for name, case in cases.items() for row in run_case(name, case, args)]
    print("\n" + table(rows, COLUMNS))
    for what in ("error %", "still %"):
        mean = np.average([row[what] for row in rows], weights=[row["maps"] for row in rows])
        print(f"\n{what} over {sum(row['maps'] for row in rows)} maps: {mean:.1f}")
    write(args.json, {"seed": args.seed, "rounds": args.rounds, "rows": rows})


if __name__ == "__main__":
    main()
