"""Is what was shipped slower than the best uniform map? Finished run folders, every uniform map of their studies beside it.

Of each run folder (of `autoquant search --out`, or `models.py --out`): the checkpoint that was shipped, and every map without
quantization or with one scheme everywhere that was found feasible on the search split and diverges less than any map that
failed to be certified. They are written as checkpoints, loaded by `autoquant.load`, each in a process of its own, in turns
and in a new order each round. A map is slower when its ratio to the fastest of them, taken round by round, is above 1 by more
than its own spread, and by 2% at least.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import need, parser, table, time_checkpoints, write

import autoquant
from autoquant.artifacts import read_json, read_yaml
from autoquant.evaluation import spread
from autoquant.schemes import SCHEMES, project
from autoquant.values import FLOAT_DTYPES, LayerMap

LEAST = 0.02
"""Share of a latency that no two processes agree on."""
SHIPPED = "shipped"


def uniform_maps(run: Path) -> dict[str, LayerMap]:
    """Label → map of all feasible uniform maps of the run's study."""
    report, price, profile = (read_json(run / name) for name in ("report.json", "price.json", "profile.json"))
    shipped = autoquant.read_layer_map(run)
    searched = report["search"]["candidates"]
    # What diverges more than a map that the certification data would not pass could not have been shipped either.
    risky = min((c["divergence"] for c in searched if c["certified"] not in (None, "PASS")), default=math.inf)
    found = {}
    for candidate in searched:
        label, base = candidate["label"], candidate["base_dtype"]
        if not candidate["feasible"] or candidate["divergence"] >= risky or candidate["origin"] != "enqueued":
            continue
        scheme = label if label in FLOAT_DTYPES else label.removeprefix("uniform ").split(" in ")[0]
        layers = {}
        for layer in report["layers"]:
            name = project(SCHEMES[scheme], layer["kind"]).name
            layers[layer["name"]] = name if name in price["layer_ms"][base][layer["name"]] else base
        absmax = {name: profile["stats"][name]["input_absmax"] for name in layers if layers[name].endswith("a8-static")}
        wide = {
            name: tuple(profile["stats"][name]["outliers"]) for name in layers if SCHEMES[layers[name]].has_outliers
        }
        found[label] = replace(shipped, layers=layers, base_dtype=base, input_absmax=absmax, outliers=wide, verdict={})
    return found


def compare(run: Path, args: Any) -> dict[str, Any]:
    """The table's row of one run, with the milliseconds of every map."""
    need(run / "report.json", run / "checkpoint")
    report, model = read_json(run / "report.json"), read_yaml(run / "settings.yaml")["model"]
    with tempfile.TemporaryDirectory(prefix="autoquant-uniform-") as scratch:
        places = {SHIPPED: (run / "checkpoint", {})}
        for number, (label, layer_map) in enumerate(uniform_maps(run).items()):
            folder = Path(scratch) / str(number)
            autoquant.apply(model, layer_map, folder)
            places[label] = (folder, {})
        times = time_checkpoints(places, report["shape"], args)
    ms = {label: spread(values) for label, values in times.items()}
    best = min((label for label in ms if label != SHIPPED), key=lambda label: ms[label][0])
    ratio, noise = spread(list(np.array(times[SHIPPED]) / np.array(times[best])))
    one = next((c for c in report["search"]["candidates"] if c["shipped"]), {"label": report["shipped"]})
    return {
        "run": run.name,
        "shipped": one["label"],
        "ms": "{:.2f} ± {:.2f}".format(*ms[SHIPPED]),
        "best uniform": best,
        "its ms": "{:.2f} ± {:.2f}".format(*ms[best]),
        "ratio": ratio,
        "spread": noise,
        "slower": "YES" if ratio - 1 > max(LEAST, noise) else "no",
        "all": {label: {"ms": value, "spread": width} for label, (value, width) in ms.items()},
    }


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    arguments.add_argument("--rounds", type=int, default=15, help="turns of each")
    args = arguments.parse_args()
    rows = [compare(run, args) for run in args.runs]
    for row in rows:
        every = [{"map": name, **figures} for name, figures in row["all"].items()]
        print(f"\n{row['run']}\n{table(sorted(every, key=lambda one: one['ms']), ['map', 'ms', 'spread'])}")
    print("\n" + table(rows, ["run", "shipped", "ms", "best uniform", "its ms", "ratio", "spread", "slower"]))
    slower = sum(row["slower"] == "YES" for row in rows)
    print(f"\nmaps shipped that are slower than the best uniform choice: {slower} of {len(rows)}")
    write(args.json, {"rows": rows, "slower": slower})


if __name__ == "__main__":
    main()
