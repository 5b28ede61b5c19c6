"""Does the profile say the truth? Its scores against brute force, one layer at a time and all together.

For each model, on the same calibration rows:

- truth: the exact divergence (KL, or half the squared distance of embeddings) of the model with this one layer in this
  one scheme, by a forward pass of the whole model for each pair;
- rank: Spearman's correlation of scores and truth over all (layer, scheme) pairs, and within one scheme over its layers
  (mean and least of all schemes);
- ratio: score / truth, median and 10th to 90th percentile;
- joint: predicted / measured divergence of random maps, predicted by the sum of the scores, and by the sum of the truth
  (which says how much of the error is interaction between layers);
- a causal language model is also scored in the two plain ways of squaring responses: each token's by itself, and the
  sum over the sequence (see `autoquant/profile/fisher.py`, `responses`);
- cost: seconds of `measure_profile` / seconds of one float forward pass of the same rows / number of schemes, both in
  this process; `passes` is what the profile says of itself (`Profile.forwards` / number of schemes).

Layers whose truth is 0 (a pooler that nothing reads) have no rank and no ratio.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import need, parser, table, write
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm import tqdm

from autoquant.errors import UsageError, pick
from autoquant.models.layers import Inventory
from autoquant.profile import measure_profile
from autoquant.profile.fisher import divergence
from autoquant.schemes import SCHEMES
from autoquant.session import Progress, Session
from autoquant.settings import Settings
from autoquant.tasks.base import Task, batches
from autoquant.values import Profile

BATCH = 16
Truth = dict[tuple[str, str], float]
Layers = dict[str, str]

INT8 = (
    "int8-tensor-sym",
    "int8-channel-sym",
    "int8-tensor-sym/a8-tensor",
    "int8-channel-sym/a8-token",
    "int8-tensor-asym/a8-static",
    "int8-channel-asym/a8-token",
    "int8-channel-sym/a8-static",
)


@dataclass(frozen=True)
class Case:
    """A model on some rows. Every `step`-th layer is scored, which bounds the time that brute force takes."""

    task: str
    data: str
    rows: int
    step: int
    schemes: tuple[str, ...] = INT8
    kinds: tuple[str, ...] = ("linear", "conv2d", "embedding")
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "minilm": Case("sts", "stsb/stsb-en-dev.csv", 64, 1),
    "smollm2": Case(
        "causal-lm", "wikitext2/valid.txt", 6, 5,
        ("int8-tensor-sym", "int8-channel-sym", "int8-channel-sym/a8-token", "int8-tensor-sym/a8-static"),
        ("linear",), {"max_length": 128},
    ),
    "dinov2-cifar10": Case("image-classification", "cifar10/cifar10_subset.npz", 32, 2),
}  # fmt: skip


class Subject:
    """A case with its model loaded, its layers picked, and its float outputs kept."""

    def __init__(self, name: str, case: Case, models: Path, data: Path, seed: int, threads: int) -> None:
        path = models / name
        need(path, data / case.data)
        settings = Settings(
            model=str(path), task=case.task, data=str(data / case.data), sizes={"calibration": case.rows}, seed=seed,
            threads=threads, **case.settings,
        )  # fmt: skip
        self.session = Session(settings, Path(tempfile.gettempdir()), Progress(quiet=True))
        self.model: nn.Module = self.session.model
        self.task: Task = self.session.task
        every = [x for x in self.session.inventory.layers if x.kind in case.kinds and x.tied_to is None]
        self.inventory = Inventory(tuple(every[case.step // 2 :: case.step]), ())
        runtime = self.session.runtime
        self.schemes = {
            layer.name: [name for name in case.schemes if runtime.supports(layer, SCHEMES[name]) is None]
            for layer in self.inventory.layers
        }
        self.names = case.schemes
        self.plan = batches(self.task, "calibration", BATCH)
        begin = time.perf_counter()
        self.float_outputs = self._outputs(self.model)
        times = [time.perf_counter() - begin]
        for _ in range(2):
            begin = time.perf_counter()
            self._outputs(self.model)
            times.append(time.perf_counter() - begin)
        self.forward_seconds = float(np.median(times))

    def _outputs(self, model: nn.Module) -> list[Tensor]:
        with torch.inference_mode():
            return [self.task.forward(model, self.task.batch("calibration", rows)) for rows in self.plan]

    def profile(self, **options: Any) -> Profile:
        return measure_profile(
            self.model, self.task, self.inventory, self.session.assembler, self.schemes, batch_size=BATCH,
            seed=self.session.settings.seed, **options,
        )  # fmt: skip

    def measured(self, layers: Mapping[str, str]) -> float:
        """Mean divergence of the outputs of the model under this map."""
        model = self.session.assembler.assemble(layers, "float32")
        total, outputs = 0.0, 0
        with torch.inference_mode():
            for rows, reference in zip(self.plan, self.float_outputs, strict=True):
                batch = self.task.batch("calibration", rows)
                output = self.task.forward(model, batch)
                mask = self.task.mask(batch) if self.task.positions else None
                for place in range(len(output)):  # row by row: the logits of a language model are large
                    keep = slice(None) if mask is None else mask[place]
                    a, b = output[place][None] if mask is None else output[place][keep], reference[place]
                    found = divergence(a, b[None] if mask is None else b[keep], self.task.output_kind)
                    total, outputs = total + found.double().sum().item(), outputs + found.numel()
        return total / outputs


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)


def spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"p10": float(low), "median": float(middle), "p90": float(high)}


def compare(
    profile: Profile, truth: Truth, maps: Sequence[tuple[Layers, float]], names: Sequence[str]
) -> dict[str, Any]:
    """The figures of one profile against the truth; without it, the joint ones alone."""
    sums = [sum(profile.scores[layer][scheme] for layer, scheme in layers.items()) / joint for layers, joint in maps]
    if not truth:
        return {"joint": spread(sums)}
    pairs = [pair for pair, value in truth.items() if value > 0]
    true = np.array([truth[pair] for pair in pairs])
    score = np.array([profile.scores[layer][scheme] for layer, scheme in pairs])
    within = {}
    for name in names:
        index = [i for i, (_, scheme) in enumerate(pairs) if scheme == name]
        within[name] = spearman(true[index], score[index])
    return {
        "pairs": len(pairs),
        "spearman_all": spearman(true, score),
        "spearman_within": within,
        "ratio": spread(score / true),
        "joint": spread(sums),
    }


def random_maps(subject: Subject, number: int, seed: int) -> list[Layers]:
    """Maps in which each layer stays in float32 with probability 1/5, and otherwise runs any of its schemes."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        kept = [name for name in subject.schemes if rng.random() < 0.8]
        found.append({name: str(rng.choice(subject.schemes[name])) for name in kept})
    return found


def run_case(
    name: str, case: Case, args: Any, variants: Mapping[str, Mapping[str, Any]], say: Callable[[str], None] = print
) -> dict[str, Any]:
    subject = Subject(name, case, args.models, args.data, args.seed, args.threads)
    task, pairs = subject.task, [(layer, s) for layer, names in subject.schemes.items() for s in names]
    say(
        f"\n{name}: {len(subject.schemes)} layers × {len(subject.names)} schemes, {len(pairs)} pairs; "
        f"{task.rows('calibration')} rows, {sum(task.lengths('calibration'))} tokens (images: rows); "
        f"one float forward pass of them: {subject.forward_seconds:.2f} s"
    )
    subject.profile(probes=1)  # warm: weights are quantized once, and kept
    profiles: dict[str, tuple[Profile, float]] = {}
    for label, options in variants.items():
        begin = time.perf_counter()
        profiles[label] = (subject.profile(**options), time.perf_counter() - begin)
    begin = time.perf_counter()
    judged = [] if args.joint_only else pairs
    truth = {
        pair: subject.measured({pair[0]: pair[1]})
        for pair in tqdm(judged, desc="brute force", leave=False, disable=None)
    }
    brute_seconds = time.perf_counter() - begin
    maps = [
        (m, subject.measured(m))
        for m in tqdm(random_maps(subject, args.maps, args.seed), desc="random maps", leave=False, disable=None)
    ]
    sums = [sum(truth[pair] for pair in layers.items()) / joint for layers, joint in maps] if truth else []
    true_sum = spread(sums) if sums else None
    rows, found = [], {}
    for label, (profile, seconds) in profiles.items():
        figures = compare(profile, truth, maps, subject.names)
        figures["seconds"] = seconds
        figures["cost"] = seconds / subject.forward_seconds / len(subject.names)
        figures["passes"] = profile.forwards / len(subject.names)
        found[label] = figures
        ranks = {}
        if truth:
            within = list(figures["spearman_within"].values())
            ranks = {
                "rank, all": figures["spearman_all"],
                "within: mean": float(np.mean(within)),
                "least": min(within),
                "score/truth": _range(figures["ratio"]),
            }
        rows.append({
            "profile": label,
            **ranks,
            "joint, of scores": _range(figures["joint"]),
            "seconds": seconds,
            "cost": figures["cost"],
            "passes": figures["passes"],
        })  # fmt: skip
    say(table(rows, list(rows[0])))
    of_truth = f"brute force: {brute_seconds:.0f} s; joint, of truth: {_range(true_sum)}; " if true_sum else ""
    say(f"{of_truth}{len(maps)} random maps")
    return {
        "case": asdict(case),
        "forward_seconds": subject.forward_seconds,
        "brute_seconds": brute_seconds,
        "joint_of_truth": true_sum,
        "profiles": found,
    }


def _range(found: Mapping[str, float]) -> str:
    return f"{found['p10']:.3f} – {found['median']:.3f} – {found['p90']:.3f}"


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--only", nargs="+", default=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    arguments.add_argument("--probes", nargs="+", type=int, default=[2, 4, 8], help="backward passes a batch")
    arguments.add_argument("--maps", type=int, default=50, help="random maps")
    arguments.add_argument("--joint-only", action="store_true", help="no brute force, which takes most of the time")
    arguments.add_argument("--rows", type=int, help="calibration items, instead of each case's own number")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    found = {}
    for name in args.only:
        try:
            case = pick(CASES, name, "case", UsageError)
        except UsageError as error:
            arguments.error(str(error))
        if args.rows:
            case = Case(**{**case.__dict__, "rows": args.rows})
        variants: dict[str, dict[str, Any]] = {f"{probes} probes": {"probes": probes} for probes in args.probes}
        if case.task == "causal-lm":
            for reach, label in ((1, "each token squared"), (None, "sequence summed")):
                for probes in args.probes:
                    variants[f"{probes} probes, {label}"] = {"probes": probes, "reach": reach}
        found[name] = run_case(name, case, args, variants)
    write(args.json, {"cases": found})


if __name__ == "__main__":
    main()
