"""Keep judging a checkpoint on items as they come, and raise the alarm when its drop has left the budget.

Both models judge every item, so the stream may be the requests of production (without labels: `--task fidelity`). What is said
holds at all times at once; see `autoquant.certify.sequence`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoquant import artifacts
from autoquant.certify.follow import Follower, Stream
from autoquant.certify.ledger import state_folder
from autoquant.certify.sequence import DropSequence
from autoquant.certify.serving import Judge
from autoquant.certify.worker import job_of
from autoquant.comparison import Pair, pair_of, weights_fingerprint
from autoquant.errors import DataError, StaleError, UsageError
from autoquant.report.verdict import watch_line
from autoquant.session import Progress, now
from autoquant.summary import ITEM_WORDS
from autoquant.tasks import DataTask

WATCHED = ("classification", "image-classification", "fidelity")
"""Tasks of which each line is an item by itself, with a value between two bounds."""

CHUNK = 256
"""Lines judged at a time, at most; the state is saved after each chunk."""

PAUSE = 1.0
"""Seconds between two looks at the file."""

TELL = 30.0
"""Seconds between two lines of progress, at least."""

SHOWN = 5
"""Malformed lines that are shown; the others are only counted."""


@dataclass
class Watch:
    """What has been seen so far."""

    made_from: str
    sequence: DropSequence | None = None
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    skipped: int = 0
    started: str = ""
    metric: str = ""

    def to_dict(self, position: Any) -> dict[str, Any]:
        return {
            "made_from": self.made_from,
            "started": self.started,
            "saved": now(),
            "metric": self.metric,
            "skipped": self.skipped,
            "sums": self.sums,
            "position": None if position is None else position.to_dict(),
            "sequence": None if self.sequence is None else self.sequence.to_dict(),
        }


def watch(
    checkpoint: str | Path,
    source: str | Path,
    against: str | Path | None = None,
    *,
    once: bool = False,
    state: str | Path | None = None,
    eval_batch_size: int = 32,
    threads: int | None = None,
    quiet: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Judge the lines of a jsonl file as they are appended, until the alarm is raised (or, with `once`, until its end).

    Lines that are no item (malformed JSON, no text, an unknown label) are skipped and counted. After a stop, it goes on
    where the state file says.

    Args:
        source: the file; `-` is stdin, which is read to its end.
        state: where what was seen is kept; by default a file of the user's for this pair of models, file and budget (none
            for stdin).
        options: as of `autoquant.certify`.

    Returns:
        `verdict`: FAIL after an alarm, PASS if the mean drop is below the budget with confidence, else INCONCLUSIVE;
        `alarm`, the number of the item that raised it, or None; `metric`, `skipped`, `state`.

    Raises:
        UsageError: the task cannot be judged item by item, or no line was an item.
        StaleError: the state is of other models, another task or another budget.
        AutoquantError: a model cannot be opened, or gives NaN.
    """
    if threads:
        torch.set_num_threads(threads)
    pair = pair_of(checkpoint, against, data=source, **options)
    _check(pair)
    progress = Progress(quiet)
    made_from = artifacts.fingerprint(
        [
            weights_fingerprint(pair.path), pair.fingerprint, pair.task, pair.metric, dict(pair.columns),
            pair.budget.drop, pair.budget.confidence,
        ]
    )  # fmt: skip
    place = Path(state) if state is not None else _place(source, made_from)
    seen, position = _restored(place, made_from)
    if seen.sequence is not None and seen.sequence.alarm is not None:
        return _answer(pair, seen, source, place)
    lines: Follower | Stream = Stream(sys.stdin.fileno()) if str(source) == "-" else Follower(source, position)
    if seen.sequence is not None:
        progress.say(f"Going on after {seen.sequence.n} items ({place})")
    with artifacts.scratch_folder() as folder:
        try:
            judged = _Judged(pair, folder, eval_batch_size, Path(source).parent)
            _run(judged, seen, lines, place, progress, once, pair)
        finally:
            judged.close()
            lines.close()
    return _answer(pair, seen, source, place)


def _run(
    judged: _Judged,
    seen: Watch,
    lines: Follower | Stream,
    place: Path | None,
    progress: Progress,
    once: bool,
    pair: Pair,
) -> None:
    told, said = time.monotonic(), 0
    while True:
        chunk = lines.read(CHUNK, end=once)
        if chunk:
            items, reasons = judged.items(chunk)
            for reason in reasons[: max(0, SHOWN - seen.skipped)]:
                progress.say(f"  skipped: {reason}")
            seen.skipped += len(reasons)
            if len(items):
                _take(seen, judged, items, pair)
            if place is not None:
                artifacts.write_json(place, seen.to_dict(lines.position))
        sequence = seen.sequence
        if sequence is not None and sequence.alarm is not None:
            return
        if not chunk and (once or isinstance(lines, Stream)) and getattr(lines, "ended", True):
            if sequence is None:
                raise UsageError(f"No line was an item of --task {pair.task}. The last reason: {judged.last_reason}")
            return
        if sequence is not None and sequence.n > said and time.monotonic() - told > TELL:
            told, said = time.monotonic(), sequence.n
            progress.say(f"{now()} {watch_line(_answer(pair, seen, '', place))}")
        if not chunk:
            time.sleep(0 if isinstance(lines, Stream) else PAUSE)


class _Judged:
    """The two models, and what they make of chunks of lines."""

    def __init__(self, pair: Pair, folder: Path, batch_size: int, base: Path) -> None:
        self._pair, self._folder, self._batch_size, self._base = pair, folder, batch_size, base
        self._judges: dict[str, Judge] = {}
        self.task: DataTask | None = None
        self.last_reason = "there were no lines."

    def items(self, lines: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """The lines that are items of the task, and why the others are none."""
        parsed: list[dict[str, Any]] = []
        reasons: list[str] = []
        for line in lines:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError(f"a {type(value).__name__}, not an object")
                parsed.append(self._absolute(value))
            except ValueError as error:
                reasons.append(f"not a JSON object ({error}): {line[:60]!r}")
        good = self._usable(parsed, reasons)
        self.last_reason = reasons[-1] if reasons else self.last_reason
        return good, reasons

    def _usable(self, items: list[dict[str, Any]], reasons: list[str]) -> list[dict[str, Any]]:
        """Those that the task takes: all at once if it takes all, else by halves."""
        if not items:
            return []
        try:
            self.task = self._pair.make(self._write(items))
            return items
        except DataError as error:
            if len(items) == 1:
                reasons.append(str(error).replace(str(self._folder / "chunk.jsonl"), "the line"))
                return []
        middle = len(items) // 2
        return self._usable(items[:middle], reasons) + self._usable(items[middle:], reasons)

    def values(self, items: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Item values of the float model and of the checkpoint."""
        path = self._write(items)
        task = self._pair.make(path)
        if not self._judges:
            self._start(task)
        before, kept = self._judges["float32"].values(path, None)
        after, _ = self._judges["checkpoint"].values(path, kept)
        return before, after

    def close(self) -> None:
        for judge in self._judges.values():
            judge.close()

    def _start(self, task: DataTask) -> None:
        for name, item in self._pair.items().items():
            common = job_of(task, self._pair.against_path, trust_remote_code=self._pair.trust_remote_code)
            job = {**common, "model": item, "batch_size": self._batch_size}
            self._judges[name] = Judge(job, self._folder, name)

    def _write(self, items: list[dict[str, Any]]) -> Path:
        path = self._folder / "chunk.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf8")
        return path

    def _absolute(self, item: dict[str, Any]) -> dict[str, Any]:
        """Paths of images are relative to the file that names them, which the chunk is not."""
        if self._pair.task != "image-classification" and not self._pair.facts.images:
            return item
        return {
            key: str((self._base / value).resolve())
            if isinstance(value, str) and (self._base / value).is_file()
            else value
            for key, value in item.items()
        }


def _take(seen: Watch, judged: _Judged, items: list[dict[str, Any]], pair: Pair) -> None:
    """Let both models judge the items, and count the outcomes in."""
    before, after = judged.values(items)
    task = judged.task
    assert task is not None and pair.budget.confidence is not None
    if seen.sequence is None:
        if not task.mean_of_items or task.bounds is None:
            raise UsageError(f"--watch judges means of items; '{task.metric}' is none. Choose another --metric.")
        width = task.bounds[1] - task.bounds[0]
        seen.sequence = DropSequence(pair.budget.drop, width, pair.budget.confidence)
        seen.started, seen.metric = now(), task.metric
    seen.sequence.update(before - after if task.higher_is_better else after - before)
    seen.sums = [seen.sums[0] + float(before.sum()), seen.sums[1] + float(after.sum())]


def _check(pair: Pair) -> None:
    if pair.task not in WATCHED or pair.facts.head == "causal-lm":
        raise UsageError(
            f"--watch cannot judge --task {pair.task} of this model line by line. It can: {', '.join(WATCHED)} (of models with "
            "one output a row). Without labels, --task fidelity compares with the float model."
        )
    if pair.budget.confidence is None:
        raise UsageError(
            "--watch needs a confidence: a point estimate that is looked at again and again proves nothing."
        )
    if pair.budget.relative:
        raise UsageError("--watch judges absolute drops: leave --relative out, and give --budget in the metric's unit.")


def _place(source: str | Path, made_from: str) -> Path | None:
    """The state file of a watched file, unless the user named one."""
    folder = state_folder()
    if folder is None or str(source) == "-":
        return None
    return folder / "watch" / f"{artifacts.fingerprint([str(Path(source).resolve()), made_from])}.json"


def _restored(place: Path | None, made_from: str) -> tuple[Watch, dict[str, Any] | None]:
    if place is None or not place.is_file():
        return Watch(made_from), None
    value = artifacts.read_json(place)
    if value.get("made_from") != made_from:
        raise StaleError(
            f"{place} is the state of a watch of other models, another task or another budget. Give another --state file, or "
            "delete it to start anew."
        )
    sequence = None if value["sequence"] is None else DropSequence.from_dict(value["sequence"])
    seen = Watch(made_from, sequence, list(value["sums"]), value["skipped"], value["started"], value["metric"])
    return seen, value["position"]


def _answer(pair: Pair, seen: Watch, source: str | Path, place: Path | None) -> dict[str, Any]:
    sequence = seen.sequence
    count = sequence.n if sequence is not None else 0
    return {
        "verdict": sequence.status if sequence is not None else "INCONCLUSIVE",
        "checkpoint": pair.checkpoint,
        "against": pair.against,
        "watched": str(source),
        "state": None if place is None else str(place),
        "started": seen.started,
        "created": now(),
        "alarm": sequence.alarm if sequence is not None else None,
        "skipped": seen.skipped,
        "budget": {"drop": pair.budget.drop, "relative": False, "confidence": pair.budget.confidence},
        "metric": {
            "name": seen.metric or (pair.metric or ""),
            "item": ITEM_WORDS.get(pair.task, "item"),
            "float": seen.sums[0] / count if count else None,
            "quantized": seen.sums[1] / count if count else None,
            "drop": sequence.drop if sequence is not None else None,
            "upper_bound": sequence.upper if sequence is not None else None,
            "lower_bound": sequence.lower if sequence is not None else None,
            "confidence": pair.budget.confidence,
            "n": count,
            "changed": sequence.flips if sequence is not None else 0,
        },
    }
