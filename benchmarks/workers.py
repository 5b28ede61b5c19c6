"""How many more maps do two workers judge in a minute than one, with one thread each?

A real search of random maps under the command line. Profile and prices are made once and copied into each run folder, so that
the runs differ by --workers alone. Counted are the maps judged from the first one begun to the last one told, by the study's own
clock: loading the model and judging the float model come before, once a worker, and are given apart (*loading*). Runs
take turns. The certification that follows is cut off.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import ROOT, need, parser, table, write
from models import JOBS, command

from autoquant.errors import UsageError, pick
from autoquant.search import join_study

PREPARED = ("profile.json", "price.json", "settings.yaml")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def prepare(name: str, args: Any, out: Path) -> None:
    """A run folder with profile and prices of one thread, where there is none yet."""
    if all((out / file).is_file() for file in PREPARED):
        return
    job = pick(JOBS, name, "job", UsageError)
    need(args.models / job.model, args.data / job.data)
    shutil.rmtree(out, ignore_errors=True)
    line = [*command(job, args, out), "--strategy", "random", "--trials", str(args.trials)]
    search(line, out, lambda: (out / "study.journal").is_file())


def search(line: list[str], out: Path, enough: Any) -> None:
    """Run until there is enough, and stop it there."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(line, env=environment(), start_new_session=True, stdout=errors, stderr=errors)
        while process.poll() is None and not enough():
            time.sleep(0.2)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait()
        elif not enough():
            errors.seek(0)
            sys.exit(f"{' '.join(line)}\n{errors.read()[-2000:]}")


def measure(prepared: Path, workers: int, args: Any, out: Path) -> dict[str, Any]:
    """One search with so many workers. The run has one thread, and no worker has less than that."""
    shutil.copytree(prepared, out, ignore=shutil.ignore_patterns("study.journal", "search.lock"))
    line = [sys.executable, "-m", "autoquant", "search", "--resume", str(out), "--workers", str(workers)]
    line += ["--trials", str(args.trials)]
    begin = time.time()
    search(line, out, lambda: (out / "front.json").is_file())
    trials = [t for t in join_study(out / "study.journal").trials if t.state.name == "COMPLETE"]
    first = min(t.datetime_start.timestamp() for t in trials)
    seconds = max(t.datetime_complete.timestamp() for t in trials) - first
    return {
        "workers": workers,
        "maps": len(trials),
        "seconds": seconds,
        "maps/minute": 60 * len(trials) / seconds,
        "loading": first - begin,
        "seconds/map": statistics.mean(t.user_attrs.get("seconds", 0.0) for t in trials),
        "maps of each": sorted(Counter(t.user_attrs["worker"] for t in trials).values()),
        "begun": [round(t.datetime_start.timestamp() - first, 1) for t in trials],
        "took": [round(t.user_attrs.get("seconds", 0.0), 1) for t in trials],
    }


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], threads=False)
    arguments.add_argument("--only", default="minilm-sst2", help=f"one of {', '.join(JOBS)}")
    arguments.add_argument("--trials", type=int, default=12, help="maps of each search")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to compare")
    arguments.add_argument("--rounds", type=int, default=1, help="searches with each number, in turns")
    arguments.add_argument("--prepared", type=Path, help="keep the folder with profile and prices there")
    arguments.add_argument("--budget", type=float, default=0.01, help="allowed drop")
    args = arguments.parse_args()
    args.threads, args.extra = 1, ""
    rows = []
    with tempfile.TemporaryDirectory(prefix="autoquant-workers-") as scratch:
        prepared = args.prepared or Path(scratch) / "prepared"
        prepare(args.only, args, prepared)
        for number in range(args.rounds):
            for workers in args.workers:
                rows.append(measure(prepared, workers, args, Path(scratch) / f"{workers}-{number}"))
                print(rows[-1], flush=True)
    rate = {n: statistics.median(r["maps/minute"] for r in rows if r["workers"] == n) for n in args.workers}
    print(table(rows, list(rows[0])[:-2]))
    for workers in args.workers[1:]:
        print(f"{workers} workers / {args.workers[0]}: {rate[workers] / rate[args.workers[0]]:.2f}")
    write(args.json, {"job": args.only, "trials": args.trials, "runs": rows})


if __name__ == "__main__":
    main()
