"""The truth of a small space, and every strategy on it.

MiniLM, 8 groups of layers × 4 schemes = 65,536 maps, each one's joint divergence computed exactly on real sentences. The
groups follow each other in depth, so maps that begin alike share what they begin with: the whole space costs a few thousand
forward passes. Every strategy then searches it, warm and cold, by looking the divergence up; regret is the share of the best
saving within the allowance that its best map lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from autoquant import artifacts
from autoquant.models.layers import get_module, set_module, share
from autoquant.price import measure_price
from autoquant.profile import measure_profile
from autoquant.profile.fisher import divergence
from autoquant.search import Outcome, Problem, make_problem
from autoquant.session import Progress, Session
from autoquant.settings import Settings
from autoquant.values import Group, Layer, Price
from benchmarks.common import need, table
from benchmarks.strategies.searches import CHECKPOINTS, run, runs

SCHEMES = ("int8-channel-sym", "int8-channel-sym/a8-token", "int8-tensor-sym/a8-static")
"""Beside float32. None has a scale that depends on other rows of a batch, so maps can be computed side by side."""
HALVES = ((0, 1), (2, 3), (4, 5), (6, 7), (8,), (9,), (10,), (11,))
"""Halves of the six blocks of MiniLM (attention, feed-forward, attention, …) that make the eight groups."""
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Allowances of divergence, as shares of the worst map's."""
AT_ONCE = 64
"""Maps whose activations go through a group together."""


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

    run(problem, evaluate, measure, name, cold, seed, trials)
    return curve
