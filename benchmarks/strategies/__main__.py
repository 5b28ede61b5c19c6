"""How soon does a search strategy find the best map, and what does racing save? Three readings, each resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from autoquant.search import STRATEGIES
from benchmarks.common import parser, write
from benchmarks.strategies.cases import CASES
from benchmarks.strategies.racing import racing
from benchmarks.strategies.regret import regret
from benchmarks.strategies.speed import speed

READINGS: dict[str, Callable[[Any], dict[str, Any]]] = {"regret": regret, "speed": speed, "racing": racing}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("reading", nargs="+", choices=list(READINGS))
    arguments.add_argument("--work", type=Path, default=Path("strategies-work"), metavar="FOLDER", help="what is kept")
    arguments.add_argument(
        "--only",
        nargs="*",
        default=list(CASES),
        choices=list(CASES),
        help="cases of `speed`, and of `racing`'s searches",
    )
    arguments.add_argument(
        "--strategies", nargs="+", choices=list(STRATEGIES), help="to compare; default: all but exhaustive"
    )
    arguments.add_argument("--space", default="int8_fp16", help="search space of `speed` and `racing`")
    arguments.add_argument("--trials", type=int, default=40, help="maps that a search of these may evaluate")
    arguments.add_argument("--sentences", type=int, default=16, help="of `regret`")
    arguments.add_argument("--seeds", type=int, default=3, help="of `regret`")
    arguments.add_argument("--outcomes", nargs="*", default=[], metavar="FOLDER", help="of `racing`: outcomes to race")
    arguments.add_argument("--items", nargs="+", type=int, default=[400, 800, 2000], help="of the split that is raced")
    arguments.add_argument("--budgets", nargs="+", type=float, default=[0.005, 0.01, 0.02])
    arguments.add_argument("--orders", type=int, default=12, help="random splits and orders of `racing`")
    args = arguments.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, Any] = {}
    for reading in args.reading:
        print(f"\n{reading}")
        found |= READINGS[reading](args)
    write(args.json, {"seed": args.seed, **found})


if __name__ == "__main__":
    main()
