"""How long is a whole search, and what does it ship? autoquant beside NNCF's accuracy control and Intel Neural Compressor.

Same model, data and budget; each tool in a process of its own, one after the other, timed from its start to
the model that it leaves. autoquant's time includes certification. What was shipped is then judged on the certification split and
timed side by side, rounds alternating.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, need, parser, table, write
from benchmarks.wallclock.tools import BATCH, JOBS, TOOLS


class Process:
    """A process of `worker.py`."""

    def __init__(self, tool: str, python: str, args: Any) -> None:
        self.folder, self.patience = (args.work / args.job / tool).resolve(), args.patience
        shutil.rmtree(self.folder / "run", ignore_errors=True)  # a search goes on where an earlier one ended
        if args.first:
            for compiled in ("inductor", "cache/autoquant/graphs"):
                shutil.rmtree(self.folder / compiled, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        job = {
            "job": args.job, "tool": tool, "model": str(args.models / JOBS[args.job].model.name),
            "data": str(args.data.resolve()), "folder": str(self.folder / "run"), "threads": args.threads, "budget": args.budget,
        }  # fmt: skip
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }  # fmt: skip
        self.begin = time.perf_counter()
        self.log = open(self.folder / "log", "w")  # noqa: SIM115 - closed in `stop`
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.wallclock.worker", json.dumps(job)], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        given_up = threading.Timer(self.patience, self.process.kill)
        given_up.start()
        line = self.process.stdout.readline()
        late = given_up.finished.is_set()
        given_up.cancel()
        if line:
            return json.loads(line)
        return {"error": f"no answer in {self.patience:.0f} s" if late else f"it ended with code {self.process.wait()}"}

    def round(self) -> float:
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        return self.answer().get("ms", float("nan"))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--job", default="minilm-sst2", choices=list(JOBS), help="model and task")
    arguments.add_argument("--budget", type=float, default=0.01, help="allowed drop; of perplexity, a share")
    arguments.add_argument("--patience", type=float, default=3600.0, help="seconds until a tool is given up")
    arguments.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS), help="float32 always runs")
    arguments.add_argument("--python", nargs="*", default=[], metavar="TOOL=PATH", help="a tool's own environment")
    arguments.add_argument("--rounds", type=int, default=11, help="timed rounds of what was shipped")
    arguments.add_argument(
        "--first", action="store_true", help="delete what the tools have compiled for this model in earlier runs"
    )
    arguments.add_argument(
        "--work",
        type=Path,
        default=Path("wallclock-work"),
        metavar="FOLDER",
        help="of files and logs",
    )
    args = arguments.parse_args()
    model, length = JOBS[args.job].model, JOBS[args.job].length
    need(args.models / model.name, *(args.data / n for n in (model.judges[0].data, model.judges[0].test_data) if n))
    pythons = dict(pair.split("=", 1) for pair in args.python)
    running: dict[str, Process] = {}
    rows: dict[str, dict[str, Any]] = {}
    try:
        for tool in dict.fromkeys(["float32", *args.tools]):
            process = Process(tool, pythons.get(tool, sys.executable), args)
            found = process.answer()
            seconds = time.perf_counter() - process.begin
            rows[tool] = {"tool": tool, "seconds": seconds, **found}
            if "error" not in found:
                rows[tool] |= process.answer()
            if "error" in rows[tool]:
                print(f"{tool}: {rows[tool]['error']} (see {process.folder / 'log'})", flush=True)
                process.stop()
            else:
                print(f"{tool}: {seconds:.0f} s", flush=True)
                running[tool] = process
        times: dict[str, list[float]] = {tool: [] for tool in running}
        draw = random.Random(args.seed)
        for _ in range(args.rounds):
            for tool in draw.sample(list(running), len(running)):
                time.sleep(0.05)  # threads of the last one cease to spin
                times[tool].append(running[tool].round())
        for tool in running:
            low, middle, high = np.percentile(times[tool], [25, 50, 75])
            rows[tool] |= {
                "uncertified": rows[tool]["seconds"] - rows[tool]["certifying"],
                "ms": float(middle),
                "±": float(high - low) / 2,
                "MB": rows[tool]["bytes"] / 1e6,
            }
    finally:
        for process in running.values():
            process.stop()
    rows_of = f"{BATCH} × {length} tokens" if length else f"{BATCH} images"
    print(f"\n{model.name}, budget {args.budget:g}, {args.threads} threads; ms of {rows_of}\n")
    print(
        table(
            rows.values(), ["tool", "seconds", "uncertified", "evaluations", "drop", "ms", "±", "MB", "said", "error"]
        )
    )
    write(args.json, {"budget": args.budget, "rounds": args.rounds, "rows": list(rows.values())})


if __name__ == "__main__":
    main()
