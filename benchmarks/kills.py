"""Is a map lost or told twice when workers, the main process and the database are killed (−9) at random moments?

A search of every map of a small space, by real processes whose judges only sleep and write down what they begin and end. A
process or the database is killed every few tenths of a second until the kills are used up; the main process is resumed,
the database started again, workers are replaced. Then the study is checked against what the judges wrote: *lost* maps were
never told, *doubled* ones more than once; *begun again* are maps whose judge was killed, *judged again* those whose judge had
ended but could not tell any more. The last two cost time, and nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import ROOT, table, write

sys.path.insert(0, str(ROOT / "tests"))

from search.drill import Drill, run_with_kills
from search.postgres import missing, server

from autoquant.search import roll
from tests import synthetic

STORAGES = ("postgresql", "sqlite", "journal")


def drill(storage: str, args: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autoquant-kills-")))
        place: Path | str = folder / "journal" if storage == "journal" else f"sqlite:///{folder}/study.db"
        restart = None
        if storage == "postgresql":
            if why := missing():
                return {"storage": storage, "skipped": why}
            database = stack.enter_context(server())
            place = database.new()

            def restart() -> None:
                database.kill()
                database.start()

        one = Drill(place, folder, args.seconds, args.workers, problem=synthetic.make(args.groups))
        done = run_with_kills(one, args.kills, args.seed, restart=restart, joined=args.joined)
        return {"storage": storage, "kills": done.total(), **{f"of {whom}": n for whom, n in sorted(done.items())},
                **one.account()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(STORAGES), choices=STORAGES, help="storages")
    parser.add_argument("--kills", type=int, default=50, help="in each storage")
    parser.add_argument("--workers", type=int, default=2, help="that the main process starts")
    parser.add_argument("--joined", type=int, default=1, help="workers from outside")
    parser.add_argument("--groups", type=int, default=4, help="groups of the space: 2 × 4^groups maps")
    parser.add_argument("--seconds", type=float, default=0.05, help="that a judge sleeps")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    roll.BEAT, roll.SILENCE = 0.5, 5.0  # a worker from outside that was killed is not waited for longer than this
    rows = [drill(storage, args) for storage in args.only]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print(table(rows, columns))
    write(args.json, {"kills": rows, "arguments": {k: v for k, v in vars(args).items() if k != "json"}})


if __name__ == "__main__":
    main()
