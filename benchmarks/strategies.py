"""How soon does a search strategy find the best map, and what does racing save? Three readings, each resumable.

regret   The truth of a small space: MiniLM, 8 groups of layers × 4 schemes = 65,536 maps, each one's joint divergence
         computed exactly on real sentences. The groups follow each other in depth, so maps that begin alike share what
         they begin with: the whole space costs a few thousand forward passes. Every strategy then searches it, warm
         and cold, by looking the divergence up; regret is the share of the best saving within the allowance that its best
         map lacks.
speed    Full-evaluation equivalents (items read / items of the search split) until 99% of the best saving that any
         strategy has found, on real models. Outcomes are kept on disk by map: a map that two strategies propose is
         evaluated once. Latencies are the price model's, so that the same map always saves the same.
racing   Items read with racing / without, and stops that the whole split contradicts: the outcomes of `speed` (or of
         --outcomes FILE, an npz whose `values` are (maps, items), row 0 the float model) raced again in many random orders.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from common import need, parser, table, write
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

from autoquant import artifacts
from autoquant.certify.judge import paired_drop
from autoquant.evaluation import evaluate_split
from autoquant.models.layers import get_module, set_module, share
from autoquant.pipeline import price_stage, problem_of, profile_stage
from autoquant.price import measure_price
from autoquant.profile import measure_profile
from autoquant.profile.fisher import divergence
from autoquant.search import STRATEGIES, Outcome, Problem, make_problem, open_study, run_search, warm_starts
from autoquant.search.race import decide, looks
from autoquant.session import Progress, Session
from autoquant.settings import Settings
from autoquant.trial import Divergence, expected_margin, partial_error
from autoquant.values import Budget, Group, Layer, Price

SCHEMES = ("int8-channel-sym", "int8-channel-sym/a8-token", "int8-tensor-sym/a8-static")
"""Beside float32. None has a scale that depends on other rows of a batch, so maps can be computed side by side."""
HALVES = ((0, 1), (2, 3), (4, 5), (6, 7), (8,), (9,), (10,), (11,))
"""Halves of the six blocks of MiniLM (attention, feed-forward, attention, …) that make the eight groups."""
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Allowances of divergence, as shares of the worst map's."""
AT_ONCE = 64
"""Maps whose activations go through a group together."""
CHECKPOINTS = (10, 20, 40)


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
        "minilm", "sts", "stsb/stsb-en-dev.csv", 300, 0.005, {"columns": {"text": 0, "text_pair": 1, "score": 2}}
    ),
    "dinov2-cifar10": Case("dinov2-cifar10", "image-classification", "cifar10/cifar10_subset.npz", 200, 0.01),
    "smollm2": Case("smollm2", "causal-lm", "wikitext2/valid.txt", 32, 0.01, {"max_length": 128}),
}


# regret ----------------------------------------------------------------------------------------------------------------


class Halves:
    """MiniLM as a chain of attention and feed-forward halves, each runnable by itself under any scheme."""

    def __init__(self, session: Session, sentences: int) -> None:
        self.session, self.task = session, session.task
        lengths = np.asarray(self.task.lengths("calibration"))
        common = np.bincount(lengths).argmax()  # rows of one length need no mask
        self.rows = np.flatnonzero(lengths == common)[:sentences].tolist()
        self.batch = self.task.batch("calibration", self.rows)
        self.model = share(session.model)
        inner = [x for x in session.inventory.layers if x.name.startswith("encoder.layer.")]
        self.halves = [[x for x in inner if _half(x) == number] for number in range(2 * len(self.model.encoder.layer))]
        self.groups = tuple(
            Group(f"group{number}", tuple(layer for half in halves for layer in self.halves[half]))
            for number, halves in enumerate(HALVES)
        )

    def run(self, group: int, scheme: str, hidden: Tensor) -> Tensor:
        """(maps · rows, tokens, width) after this group's halves under `scheme`."""
        for layer in self.groups[group].layers:
            module = get_module(self.session.model, layer.name)
            if scheme != "float32":
                module = self.session.assembler.module(layer, scheme, "float32")
            set_module(self.model, layer.name, module)
        for half in HALVES[group]:
            block = self.model.encoder.layer[half // 2]
            hidden = block.feed_forward_chunk(hidden) if half % 2 else block.attention(hidden, None)[0]
        return hidden

    def start(self) -> Tensor:
        """(rows, tokens, width): the embeddings, which stay float."""
        inputs = {name: self.batch[name] for name in ("input_ids", "token_type_ids") if name in self.batch}
        return self.model.embeddings(**inputs)

    def output(self, hidden: Tensor) -> Tensor:
        """(maps, rows, width) normalised embeddings."""
        pooled = nn.functional.normalize(hidden.mean(1), dim=1)
        return pooled.view(-1, len(self.rows), pooled.shape[-1])


def _half(layer: Layer) -> int:
    parts = layer.name.split(".")
    return 2 * int(parts[2]) + (parts[3] != "attention")


def truth(halves: Halves, path: Path) -> np.ndarray:
    """(4, …, 4) joint divergence of every map; computed group by group, and written after each first choice."""
    names = ("float32", *SCHEMES)
    shape = (len(names),) * len(HALVES)
    with torch.inference_mode():
        start = halves.start()
        hidden = start
        for group in range(len(HALVES)):
            hidden = halves.run(group, "float32", hidden)
        reference = halves.output(hidden)
        for first in tqdm(range(len(names) ** 2), desc="first two groups", unit="choice"):
            part = path.with_name(f"{path.stem}-{first}.npy")
            if part.is_file():
                continue
            hidden = start
            for group, option in enumerate(divmod(first, len(names))):
                hidden = halves.run(group, names[option], hidden)
            found = torch.cat(list(_below(halves, names, 2, hidden, reference)))
            with artifacts.atomic(part) as temporary, open(temporary, "wb") as file:
                np.save(file, found.double().numpy())
    return np.concatenate([np.load(path.with_name(f"{path.stem}-{n}.npy")) for n in range(len(names) ** 2)]).reshape(
        shape
    )


def _below(halves: Halves, names: Sequence[str], group: int, hidden: Tensor, reference: Tensor) -> Iterator[Tensor]:
    """Divergences of all maps that begin alike, in the order of `product`: `hidden` is (maps · rows, tokens, width)."""
    if group == len(HALVES):
        output = halves.output(hidden)
        yield divergence(output, reference.expand_as(output), "embedding").mean(1)
        return
    rows = len(halves.rows)
    for part in hidden.split(max(1, AT_ONCE // len(names)) * rows):
        after = [halves.run(group, name, part).unflatten(0, (-1, rows)) for name in names]
        yield from _below(halves, names, group + 1, torch.stack(after, 1).flatten(0, 2), reference)


def checked(halves: Halves, found: np.ndarray, count: int = 8) -> float:
    """Largest relative difference between random maps' divergences in `found` and those of the whole served model."""
    names, rng, worst = ("float32", *SCHEMES), np.random.default_rng(0), 0.0
    with torch.inference_mode():
        reference = halves.task.forward(halves.session.model, halves.batch)
        for _ in range(count):
            choice = rng.integers(0, len(names), len(HALVES))
            layers = {
                layer.name: names[option]
                for group, option in zip(halves.groups, choice, strict=True)
                for layer in group.layers
            }
            output = halves.task.forward(halves.session.assembler.assemble(layers, "float32"), halves.batch)
            whole = divergence(output, reference, "embedding").mean().item()
            worst = max(worst, abs(found[tuple(choice)] / whole - 1) if whole else 0.0)
    return worst


def small_problem(halves: Halves, folder: Path) -> Problem:
    """The 65,536 maps as a search problem: profile and prices of these groups, measured once and kept."""
    session = halves.session
    allowed = {layer.name: SCHEMES for group in halves.groups for layer in group.layers}
    allowed = {layer.name: allowed.get(layer.name, ()) for layer in session.inventory.layers}
    profile = measure_profile(
        session.model, session.task, session.inventory, session.assembler, allowed, seed=session.settings.seed
    )
    path = folder / "price.json"
    if path.is_file():
        price = Price.from_dict(artifacts.read_json(path))
    else:
        price = measure_price(
            session.model, session.task, session.inventory, session.assembler, allowed, ("float32",), batch_size=8,
            seq_len=session.seq_len,
        )  # fmt: skip
        artifacts.write_json(path, price.to_dict())
    problem = make_problem(halves.groups, allowed, profile, price, "balanced")
    left = [x for x in session.inventory.layers if not allowed[x.name]]  # layers outside the groups stay float32
    rest_ms = sum(price.layer_ms["float32"][x.name]["float32"] for x in left)
    rest_bytes = sum(price.layer_bytes["float32"][x.name]["float32"] for x in left)
    return replace(
        problem,
        base_ms={"float32": problem.base_ms["float32"] + rest_ms},
        base_bytes={"float32": problem.base_bytes["float32"] + rest_bytes},
    )


def regret(args: Any) -> dict[str, Any]:
    folder = args.work / "regret"
    folder.mkdir(parents=True, exist_ok=True)
    need(args.models / "minilm", args.data / "stsb/stsb-en-dev.csv")
    settings = Settings(
        model=str(args.models / "minilm"), task="sts", data=str(args.data / "stsb/stsb-en-dev.csv"), seed=args.seed,
        threads=args.threads, sizes={"calibration": 128}, columns={"text": 0, "text_pair": 1, "score": 2},
    )  # fmt: skip
    session = Session(settings, folder, Progress(quiet=True))
    halves = Halves(session, args.sentences)
    problem = small_problem(halves, folder)
    found = truth(halves, folder / f"truth-{args.sentences}.npy")
    off = checked(halves, found)
    print(f"{found.size} maps, {len(halves.rows)} sentences; served whole, random maps differ by at most {off:.1%}")
    maps = list(product(*map(range, found.shape)))
    saved = np.array([problem.saving(problem.total_ms("float32", c), problem.total_bytes("float32", c)) for c in maps])
    exact, predicted = found.ravel(), np.array([problem.score(c) for c in maps])
    ratio = exact[1:] / predicted[1:]
    print(
        f"observed / predicted: {np.percentile(ratio, 10):.2f} – {np.median(ratio):.2f} – {np.percentile(ratio, 90):.2f}"
    )
    rows = []
    for share_, (name, cold), seed in product(SHARES, runs(args.strategies), range(args.seeds)):
        limit = share_ * exact.max()
        best = saved[exact <= limit].max()
        path = folder / f"{name}-{'cold' if cold else 'warm'}-{share_}-{seed}.json"
        if not path.is_file():
            curve = lookup_search(problem, found, limit, name, cold, seed, max(CHECKPOINTS))
            artifacts.write_json(path, {"curve": curve})
        curve = artifacts.read_json(path)["curve"]
        left = [1 - max(curve[:n], default=0.0) / best for n in CHECKPOINTS]
        rows.append(
            {"strategy": name, "start": "cold" if cold else "warm", "share": share_, "seed": seed, "left": left}
        )
    shown = [
        {"strategy": name, "start": start, **{
            f"regret % at {n}{word}": 100 * float(summary([r["left"][i] for r in rows
                                                           if (r["strategy"], r["start"]) == (name, start)]))
            for i, n in enumerate(CHECKPOINTS) for word, summary in (("", np.mean), (" worst", np.max))
        }}
        for name, start in dict.fromkeys((r["strategy"], r["start"]) for r in rows)
    ]  # fmt: skip
    print(table(shown, list(shown[0])))
    return {"regret": shown, "runs": rows, "served_differs": off}


def lookup_search(
    problem: Problem, found: np.ndarray, limit: float, name: str, cold: bool, seed: int, trials: int
) -> list[float]:
    """The best saving within the allowance after each evaluation."""

    curve: list[float] = []

    def evaluate(base: str, layers: dict[str, str]) -> Outcome:
        choice = problem.choice_of(base, layers)
        nats, ms = float(found[choice]), problem.total_ms(base, choice)
        within = problem.saving(ms, problem.total_bytes(base, choice)) if nats <= limit else 0.0
        curve.append(max(within, curve[-1] if curve else 0.0))
        return Outcome(nats, 0.0, nats - limit, nats, ms, 1)

    def measure(base: str, layers: dict[str, str]) -> tuple[float, int]:
        curve.append(curve[-1])  # an exact one-layer divergence is an evaluation, too
        return float(found[problem.choice_of(base, layers)]), 1

    with tempfile.TemporaryDirectory() as scratch:
        study = open_study(Path(scratch) / "journal", problem, name, seed)
        starts = () if cold else warm_starts(problem, name)
        run_search(problem, evaluate, study, trials=trials, starts=starts, measure=measure)
    return curve


def runs(wanted: Sequence[str] | None) -> list[tuple[str, bool]]:
    names = [name for name in STRATEGIES if name != "exhaustive" and (not wanted or name in wanted)]
    return [(name, cold) for name in names for cold in (False, True)]


# speed -----------------------------------------------------------------------------------------------------------------


class Outcomes:
    """Per-item values and divergence of maps on the whole search split, kept on disk by map."""

    def __init__(self, session: Session, folder: Path, problem: Problem) -> None:
        self.session, self.folder, self.problem = session, folder / "outcomes", problem
        self.folder.mkdir(parents=True, exist_ok=True)
        self.task, self.against = session.task, Divergence(session.task)
        batch_size = session.settings.eval_batch_size
        self.base = evaluate_split(
            session.model, self.task, "search", batch_size=batch_size, is_reference=True, observe=self.against.keep
        )
        order = np.random.default_rng(session.settings.seed).permutation(self.task.items("search"))
        self.order = order
        np.savez(self.folder.parent / "float32.npz", values=self.base.values)

    def of(self, base: str, layers: Mapping[str, str]) -> tuple[np.ndarray, float]:
        """((items,) values, divergence)."""
        path = self.folder / f"{artifacts.fingerprint([base, dict(layers)])}.npz"
        if not path.is_file():
            model = self.session.assembler.assemble(layers, base)
            self.against.forget()
            found = evaluate_split(
                model, self.task, "search", batch_size=self.base.batch_size, reference=self.base.reduced,
                observe=self.against.compare,
            )  # fmt: skip
            with artifacts.atomic(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, values=found.values, divergence=self.against.mean())
        with np.load(path) as kept:
            return kept["values"], float(kept["divergence"])

    def evaluate(self, base: str, layers: Mapping[str, str], race: bool = True) -> Outcome:
        """What a search is told of a map, and the items that it reads for it."""
        values, nats = self.of(base, layers)
        answer = raced(self.task, self.session.budget, self.base.values, values, self.order, race)
        ms = self.problem.total_ms(base, self.problem.choice_of(base, layers))
        return Outcome(answer.drop, answer.error, answer.margin, nats, ms, answer.items)


@dataclass(frozen=True)
class Answer:
    drop: float
    error: float
    margin: float
    items: int


def raced(task: Any, budget: Any, before: np.ndarray, after: np.ndarray, order: np.ndarray, race: bool) -> Answer:
    """The race of `autoquant.trial.Judge`, on values that are known already."""
    total, ends = len(order), looks(len(order)) if race else [len(order)]
    for n in ends:
        seen = order[:n]
        drop = paired_drop(task, "search", before, after, budget, seen)
        error = partial_error(task, before, after, budget, seen)
        margin = expected_margin(drop, error, n, task.items("certification"), budget)
        if decide(margin, error, n, total) is not None:
            break
    return Answer(drop, error, margin, n)


def speed_session(name: str, args: Any) -> tuple[Session, Problem]:
    case = CASES[name]
    need(args.models / case.model, args.data / case.data)
    settings = Settings(
        model=str(args.models / case.model), task=case.task, data=str(args.data / case.data), seed=args.seed,
        threads=args.threads, budget=case.budget, sizes={"calibration": 64, "search": case.items}, space=args.space,
        **case.settings,
    )  # fmt: skip
    folder = args.work / "speed" / name
    folder.mkdir(parents=True, exist_ok=True)
    session = Session(settings, folder, Progress(quiet=True))
    profile, price = profile_stage(session), price_stage(session)
    return session, problem_of(session, profile, price)


def speed(args: Any) -> dict[str, Any]:
    every = {}
    for name in args.only:
        session, problem = speed_session(name, args)
        outcomes, items = Outcomes(session, session.folder, problem), session.task.items("search")
        curves: dict[str, list[tuple[float, float]]] = {}
        for strategy, cold in runs(args.strategies):
            path = session.folder / f"{strategy}-{'cold' if cold else 'warm'}.json"
            if not path.is_file():
                artifacts.write_json(path, {"curve": _speed_curve(problem, outcomes, strategy, cold, args, items)})
            curves[path.stem] = artifacts.read_json(path)["curve"]
        best = max((point[1] for curve in curves.values() for point in curve), default=0.0)
        rows = [
            {"case": name, "run": run, "best": max((s for _, s in curve), default=None),
             "full evaluations to 99%": next((round(cost, 2) for cost, s in curve if s >= 0.99 * best), None),
             "spent": curve[-1][0] if curve else 0.0}
            for run, curve in curves.items()
        ]  # fmt: skip
        print(f"\n{name}: best saving {best:.3f}×, {items} items")
        print(table(rows, list(rows[0])))
        every[name] = rows
    return {"speed": every}


def _speed_curve(
    problem: Problem, outcomes: Outcomes, strategy: str, cold: bool, args: Any, items: int
) -> list[tuple[float, float]]:
    """(full-evaluation equivalents spent, best saving within the budget of the whole split) after each evaluation."""
    curve: list[tuple[float, float]] = []

    def evaluate(base: str, layers: dict[str, str]) -> Outcome:
        told, whole = outcomes.evaluate(base, layers), outcomes.evaluate(base, layers, race=False)
        size = problem.total_bytes(base, problem.choice_of(base, layers))
        spent, best = curve[-1] if curve else (0.0, 0.0)
        saved = problem.saving(told.ms, size) if whole.margin <= 0 else 0.0
        curve.append((spent + told.items / items, max(best, saved)))
        return told

    def measure(base: str, layers: dict[str, str]) -> tuple[float, int]:
        read = looks(items)[0]
        spent, best = curve[-1]
        curve.append((spent + read / items, best))
        return outcomes.of(base, layers)[1], read

    with tempfile.TemporaryDirectory() as scratch:
        study = open_study(Path(scratch) / "journal", problem, strategy, args.seed)
        starts = () if cold else warm_starts(problem, strategy)
        run_search(problem, evaluate, study, trials=args.trials, starts=starts, measure=measure)
    return curve


# racing ----------------------------------------------------------------------------------------------------------------


def racing(args: Any) -> dict[str, Any]:
    """Means of bounded items only: a file of values knows nothing of other metrics."""
    files = [Path(file) for file in args.outcomes]
    for name in args.only if not files else ():
        folder = args.work / "speed" / name
        if not (folder / "float32.npz").is_file() or CASES[name].task in ("sts", "causal-lm"):
            continue
        values = [np.load(folder / "float32.npz")["values"]]
        values += [np.load(path)["values"] for path in sorted((folder / "outcomes").glob("*.npz"))]
        np.savez(folder / "values.npz", values=np.stack(values))
        files.append(folder / "values.npz")
    rows = []
    for file in files:
        values = np.load(file)["values"]
        for items, budget in product(args.items, args.budgets):
            rows.append({"file": file.parent.name, "maps": len(values) - 1, **_races(values, items, budget, args)})
    if rows:
        print(table(rows, list(rows[0])))
    return {"racing": rows}


def _races(values: np.ndarray, items: int, budget: float, args: Any) -> dict[str, Any]:
    """Every map raced in `--orders` random splits and orders; items whose value is a mean's, from 0 to 1."""
    rng, total = np.random.default_rng(args.seed), min(items, values.shape[1])
    certification = max(values.shape[1] - total, total)
    allowed, z = Budget(budget), stats.norm.ppf(0.95)
    read: dict[bool, list[int]] = {True: [], False: []}
    wrong = 0
    for _ in range(args.orders):
        split = rng.permutation(values.shape[1])[:total]
        for drops in (values[0] - values[1:])[:, split]:
            within = drops.mean() + z * drops.std() / np.sqrt(certification) <= allowed.drop
            for n in looks(total):
                error = np.sqrt((np.var(drops[:n]) * n + (n < total)) / (n + (n < total)) / n)
                margin = expected_margin(float(drops[:n].mean()), error, n, certification, allowed)
                found = decide(margin, error, n, total)
                if found is not None:
                    break
            read[bool(within)].append(n)
            wrong += found != within
    count = sum(map(len, read.values()))
    return {
        "items": total,
        "budget": budget,
        "races": count,
        "within": len(read[True]) / count,
        "read / items": sum(map(sum, read.values())) / count / total,
        "of maps within": float(np.mean(read[True])) / total if read[True] else None,
        "of maps beyond": float(np.mean(read[False])) / total if read[False] else None,
        "wrong stops": wrong / count,
    }


READINGS = {"regret": regret, "speed": speed, "racing": racing}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("reading", nargs="+", choices=list(READINGS))
    arguments.add_argument("--work", type=Path, default=Path("strategies-work"), metavar="FOLDER", help="what is kept")
    arguments.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), help="cases of `speed`")
    arguments.add_argument(
        "--strategies", nargs="+", choices=list(STRATEGIES), help="to compare; default: all but exhaustive"
    )
    arguments.add_argument("--space", default="int8_fp16", help="search space of `speed`")
    arguments.add_argument("--trials", type=int, default=40, help="maps that a strategy of `speed` may evaluate")
    arguments.add_argument("--sentences", type=int, default=16, help="of `regret`")
    arguments.add_argument("--seeds", type=int, default=3, help="of `regret`")
    arguments.add_argument("--outcomes", nargs="*", default=[], metavar="FILE", help="of `racing`: npz files to race")
    arguments.add_argument("--items", nargs="+", type=int, default=[400, 800, 2000], help="of the split that is raced")
    arguments.add_argument("--budgets", nargs="+", type=float, default=[0.005, 0.01, 0.02])
    arguments.add_argument("--orders", type=int, default=20, help="random splits and orders of `racing`")
    args = arguments.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, Any] = {}
    for reading in args.reading:
        print(f"\n{reading}")
        found |= READINGS[reading](args)
    write(args.json, {"seed": args.seed, **found})


if __name__ == "__main__":
    main()
