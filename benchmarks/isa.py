"""Is a map the fastest on the hardware that it was found for? One machine stands in for three.

ONEDNN_MAX_CPU_ISA caps the instructions that oneDNN uses, and autoquant's own kernels are compiled for it; for AVX2, torch's
own vector code and MKL's float32 products are capped by their variables, too. `autoquant search` runs on the same model and
data under each cap, in a process of its own; then every shipped checkpoint is timed under every cap, each in a process of its
own, in turns and in a new order each round, and the float32 model with them. What should come out: different maps, and in
every row of the table the smallest time on the diagonal. MKL may choose its kernels otherwise on processors that are not
Intel's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, need, parser, table, time_checkpoints, write
from models import EXIT_OF_A_VERDICT, JOBS, command

from autoquant.artifacts import read_json
from autoquant.checkpoint import read_layer_map
from autoquant.errors import UsageError, pick
from autoquant.evaluation import spread

ISAS = {
    "all": {"ONEDNN_MAX_CPU_ISA": "DEFAULT"},
    "AVX512_VNNI": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
"""Name in the tables → environment of the processes."""
FLOAT = "float32 model"


@dataclass(frozen=True)
class Found:
    """What a search under one cap shipped."""

    isa: str
    checkpoint: Path
    base_dtype: str
    layers: dict[str, str]
    report: dict[str, Any]


def search(isa: str, job: str, args: Any, out: Path) -> Found:
    """Search under a cap, unless `out` holds a finished run.

    Exits with the last lines of a search that failed.
    """
    if not (out / "report.json").is_file():
        print(f"searching with {' '.join(f'{name}={value}' for name, value in ISAS[isa].items())} …", flush=True)
        environment = {
            **os.environ, **ISAS[isa],
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }  # fmt: skip
        line = [*command(JOBS[job], args, out), "--objective", "latency"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in EXIT_OF_A_VERDICT:
            sys.exit(f"the search failed: {(done.stderr.strip() or done.stdout.strip())[-2000:]}")
    report = read_json(out / "report.json")
    print(f"{isa}: {report['sentence']}", flush=True)
    layer_map = read_layer_map(out)
    return Found(isa, out / "checkpoint", layer_map.base_dtype, dict(layer_map.layers), report)


def measure(paths: dict[str, Path], shape: dict[str, int], args: Any) -> dict[tuple[str, str], tuple[float, float]]:
    """(ISA timed on, key of `paths`) → median ms and half the interquartile range of the rounds' medians."""
    places = {(isa, name): (path, ISAS[isa]) for isa in ISAS for name, path in paths.items()}
    return {key: spread(values) for key, values in time_checkpoints(places, shape, args).items()}


def verdict(isa: str, ms: dict[tuple[str, str], tuple[float, float]]) -> str:
    """Whether the map found on this ISA is the fastest of all on it; closer than the spreads is a tie."""
    own, noise = ms[isa, isa]
    faster = []
    for (timed_on, name), (theirs, their_noise) in ms.items():
        if timed_on == isa and name != isa and theirs < own:
            tied = own - theirs <= float(np.hypot(noise, their_noise))
            faster.append(f"{'tied with' if tied else 'slower than'} {name}")
    return ", ".join(faster) or "fastest"


def describe(one: Found) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for scheme in one.layers.values():
        counts[scheme] = counts.get(scheme, 0) + 1
    schemes = ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
    return {
        "found on": one.isa,
        "verdict": one.report["verdict"],
        "base": one.base_dtype,
        "schemes": schemes,
        "drop": one.report["metric"]["drop"],
    }


def differences(found: list[Found]) -> list[dict[str, Any]]:
    """For each two maps: layers with another scheme, and whether the base dtype differs."""
    return [
        {
            "maps": f"{a.isa} – {b.isa}",
            "layers that differ": sum(a.layers[name] != b.layers[name] for name in a.layers),
            "of": len(a.layers),
            "base differs": "yes" if a.base_dtype != b.base_dtype else "no",
        }
        for number, a in enumerate(found)
        for b in found[number + 1 :]
    ]


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--job", default="minilm-stsb", help=f"of {', '.join(JOBS)}")
    arguments.add_argument("--budget", type=float, default=0.01, help="allowed drop")
    arguments.add_argument("--runs", type=Path, help="keep the run folders there; finished ones are used again")
    arguments.add_argument("--rounds", type=int, default=15, help="turns of each")
    arguments.add_argument("--extra", default="", help="more arguments for autoquant search, in one string")
    args = arguments.parse_args()
    try:
        job = pick(JOBS, args.job, "job", UsageError)
    except UsageError as error:
        arguments.error(str(error))
    need(args.models / job.model, args.data / job.data)
    with tempfile.TemporaryDirectory(prefix="autoquant-isa-") as scratch:
        folder = args.runs or Path(scratch)
        found = [search(isa, args.job, args, folder / isa) for isa in ISAS]
        shape = found[0].report["shape"]
        paths = {**{one.isa: one.checkpoint for one in found}, FLOAT: args.models / job.model}
        ms = measure(paths, shape, args)
    maps, apart = [describe(one) for one in found], differences(found)
    rows = [
        {"timed on": isa}
        | {name: "{:.2f} ± {:.2f}".format(*ms[isa, name]) for name in paths}
        | {"its own map is": verdict(isa, ms)}
        for isa in ISAS
    ]
    print("\n" + table(maps, list(maps[0])))
    print("\n" + table(apart, list(apart[0])))
    print(f"\nms at {shape}, {args.threads} threads\n" + table(rows, list(rows[0])))
    cells = [{"timed_on": a, "found_on": b, "ms": value, "spread": noise} for (a, b), (value, noise) in ms.items()]
    write(args.json, {"job": args.job, "budget": args.budget, "shape": shape, "maps": maps, "differences": apart,
                      "cells": cells, "verdicts": {row["timed on"]: row["its own map is"] for row in rows}})  # fmt: skip


if __name__ == "__main__":
    main()
