"""The main job on real models: `autoquant search` through the command line, one table of the answers.

Each job is what a user types, in a process of its own; the figures are read from its report.json. Certification data is
a file that the search never reads, except for SciFact-mini (one set, split by the seed) and CIFAR-10 (train and test in
one npz). The last line of a failed job is shown, and the others go on.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, need, parser, table, write

from autoquant.artifacts import read_json
from autoquant.errors import UsageError, pick

PAIR = {"text": 0, "text_pair": 1, "score": 2}
TEXT = {"text": 0, "label": 1}


@dataclass(frozen=True)
class Job:
    """What is searched: a model folder, and data files below the data folder."""

    model: str
    task: str
    data: str
    test_data: str | None = None
    columns: tuple[tuple[str, int], ...] = ()


JOBS = {
    "minilm-stsb": Job("minilm", "sts", "stsb/stsb-en-dev.csv", "stsb/stsb-en-test.csv", tuple(PAIR.items())),
    "minilm-scifact": Job("minilm", "retrieval", "scifact_mini"),
    "minilm-sst2": Job("minilm-sst2", "classification", "sst2/dev.tsv", "sst2/test.tsv", tuple(TEXT.items())),
    "smollm2-wikitext2": Job("smollm2", "causal-lm", "wikitext2/valid.txt", "wikitext2/test.txt"),
    "dinov2-cifar10": Job("dinov2-cifar10", "image-classification", "cifar10/cifar10_subset.npz"),
}
EXIT_OF_A_VERDICT = (0, 3, 4)
"""PASS, FAIL and INCONCLUSIVE; other exit codes are errors."""


def command(job: Job, args: Any, out: Path) -> list[str]:
    found = [sys.executable, "-m", "autoquant", "search", str(args.models / job.model), "--task", job.task]
    found += ["--data", str(args.data / job.data), "--budget", f"{args.budget:g}", "--out", str(out)]
    found += ["--threads", str(args.threads), "--seed", str(args.seed), "--quiet"]
    if job.test_data:
        found += ["--test-data", str(args.data / job.test_data)]
    for role, place in job.columns:
        found += ["--columns", f"{role}={place}"]
    return found + shlex.split(args.extra)


def run(name: str, job: Job, args: Any, out: Path) -> dict[str, Any]:
    """One job: its report's figures, or why there are none."""
    need(args.models / job.model, args.data / job.data)
    line = command(job, args, out)
    print(f"\n{name}: {shlex.join(['autoquant', *line[3:]])}", flush=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    begin = time.perf_counter()
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - begin
    print(f"  {wall:.0f} s, exit code {done.returncode}", flush=True)
    if done.returncode not in EXIT_OF_A_VERDICT:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        print("\n".join(f"  {text}" for text in lines[-8:]))
        return {"job": name, "verdict": "ERROR", "error": lines[-1] if lines else "", "wall_seconds": wall}
    report = read_json(out / "report.json")
    print(f"  {report['sentence']}")
    for note in report.get("notes", []):
        print(f"  note: {note}")
    return {"job": name, **figures(report), "wall_seconds": wall}


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """The table's figures of one report. Those of "quantized" are of the map that was judged, shipped or not."""
    metric, ms, size = report["metric"], report["latency_ms"], report["bytes"]
    return {
        "verdict": report["verdict"],
        "metric": metric["name"],
        "float": metric["float"],
        "drop": metric["drop"],
        "bound": metric["upper_bound"],
        "n": metric["n"],
        "method": metric["method"],
        "x float32": _ratio(ms["float32"], ms.get("quantized")),
        "x half": _ratio(ms.get("half"), ms.get("quantized")),
        "half dtype": report["half_dtype"],
        "bytes": _ratio(size.get("quantized"), size["float32"]),
        "base": report["base_dtype"],
        "shipped": report["shipped"],
        "maps": report["search"]["trials"],
        "schemes": report["schemes"],
        "stages": report["stages"],
        "profile_passes": report["profile"].get("forwards"),
        "candidates": [
            {key: c.get(key) for key in ("label", "base_dtype", "saving", "ms", "bytes", "drop", "divergence",
                                         "predicted_divergence", "feasible", "state", "certified")}
            for c in report["search"]["candidates"]
        ],
    }  # fmt: skip


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--only", nargs="+", default=list(JOBS), metavar="NAME", help=f"of {', '.join(JOBS)}")
    arguments.add_argument("--budget", type=float, default=0.01, help="allowed drop")
    arguments.add_argument("--out", type=Path, help="folder to keep the run folders in; default: a temporary one")
    arguments.add_argument("--extra", default="", help="more arguments for autoquant search, in one string")
    args = arguments.parse_args()
    try:
        jobs = {name: pick(JOBS, name, "job", UsageError) for name in args.only}
    except UsageError as error:
        arguments.error(str(error))
    with tempfile.TemporaryDirectory(prefix="autoquant-models-") as scratch:
        folder = args.out or Path(scratch)
        rows = [run(name, job, args, folder / name) for name, job in jobs.items()]
    answers = ["verdict", "metric", "float", "drop", "bound", "n", "x float32", "x half", "bytes", "base", "shipped"]
    print("\n" + table(rows, ["job", *answers, "maps"]))
    seconds = [{"job": row["job"], **row.get("stages", {}), "wall": row["wall_seconds"]} for row in rows]
    print(
        "\nSeconds of each stage\n"
        + table(seconds, ["job", "power", "profile", "price", "search", "finals", "certify", "wall"])
    )
    write(args.json, {"budget": args.budget, "seed": args.seed, "jobs": rows})


if __name__ == "__main__":
    main()
