"""Real models whose maps are judged as a search judges them, each map once: outcomes are kept on disk.

Latencies are the price model's, so that the same map always saves the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autoquant import artifacts
from autoquant.measured import price_stage, profile_stage
from autoquant.search import Outcome, Problem
from autoquant.search.race import Order
from autoquant.searching import problem_of
from autoquant.session import Progress, Session
from autoquant.settings import Settings
from autoquant.trial import Judge, Track, make_judge
from benchmarks.common import need


@dataclass(frozen=True)
class Case:
    """A model, a task, and how many items its search split has."""

    model: str
    task: str
    data: str
    items: int
    budget: float
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "minilm-sst2": Case(
        "minilm-sst2", "classification", "sst2/dev.tsv", 400, 0.01, {"columns": {"text": 0, "label": 1}}
    ),
    "minilm-stsb": Case(
        "minilm", "sts", "stsb/stsb-en-dev.csv", 200, 0.005, {"columns": {"text": 0, "text_pair": 1, "score": 2}}
    ),
    "dinov2-cifar10": Case("dinov2-cifar10", "image-classification", "cifar10/cifar10_subset.npz", 100, 0.02),
    "smollm2": Case("smollm2", "causal-lm", "wikitext2/valid.txt", 16, 0.02, {"max_length": 64, "seq_len": 64}),
}
CALIBRATION = {"smollm2": 16}
"""Items, where not 64."""


class Bench:
    """One case: its problem, and the outcome of any map with and without racing."""

    def __init__(self, name: str, args: Any) -> None:
        case = CASES[name]
        need(args.models / case.model, args.data / case.data)
        sizes = {"calibration": CALIBRATION.get(name, 64), "search": case.items}
        settings = Settings(
            model=str(args.models / case.model), task=case.task, data=str(args.data / case.data), seed=args.seed,
            threads=args.threads, budget=case.budget, sizes=sizes, space=args.space, **case.settings,
        )  # fmt: skip
        self.folder: Path = args.work / "cases" / name
        (self.folder / "outcomes").mkdir(parents=True, exist_ok=True)
        session = Session(settings, self.folder, Progress(quiet=True))
        profile, price = profile_stage(session), price_stage(session)
        self.items = session.task.items("search")
        self.problem: Problem = problem_of(session, profile, price)
        raced = replace(make_judge(session, price, lambda done, total: None), milliseconds=lambda model: (1.0, 0.0))
        order = Order.by_chance(self.items, settings.seed)
        track = Track.of(session.task, settings.eval_batch_size, [order.items.tolist()])
        whole = replace(raced, course=replace(raced.course, order=order), track=track)
        self.judges: dict[bool, Judge] = {True: raced, False: whole}

    def evaluate(self, base: str, layers: dict[str, str], race: bool = True) -> Outcome:
        """What a search is told of a map, and how many items it reads for it."""
        known = self._kept([base, layers, race], lambda: asdict(self.judges[race](base, layers)))
        return Outcome(**{**known, "ms": self.problem.total_ms(base, self.problem.choice_of(base, layers))})

    def measure(self, base: str, layers: dict[str, str], race: bool = True) -> tuple[float, int]:
        """As `autoquant.trial.Judge.measure`: (divergence of a map, items read)."""
        nats, items = self._kept(["measure", base, layers], lambda: self.judges[True].measure(base, layers))
        return nats, items

    def saving(self, base: str, layers: dict[str, str]) -> float:
        choice = self.problem.choice_of(base, layers)
        return self.problem.saving(self.problem.total_ms(base, choice), self.problem.total_bytes(base, choice))

    def _kept(self, key: Any, compute: Any) -> Any:
        path = self.folder / "outcomes" / f"{artifacts.fingerprint(key)}.json"
        if not path.is_file():
            artifacts.write_json(path, {"found": compute()})
        return artifacts.read_json(path)["found"]
