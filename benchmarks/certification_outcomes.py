"""What each item gave under each of many maps, of real models on real data: kept on disk for `certification.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import need
from tqdm import tqdm

from autoquant.artifacts import atomic
from autoquant.evaluation import evaluate_split
from autoquant.fragility import fragility
from autoquant.layer_maps import input_absmax
from autoquant.measured import profile_stage
from autoquant.profile.fisher import divergence
from autoquant.session import Progress, Session
from autoquant.settings import Settings
from autoquant.tasks.docstrings import split_pairs

BASE = "bfloat16"
PRICES = {
    "bfloat16": 1.0,
    "int8-channel-sym": 0.8,
    "int8-tensor-sym": 0.75,
    "int8-channel-sym/a8-token": 0.55,
    "int8-channel-asym/a8-tensor": 0.5,
    "int8-tensor-sym/a8-tensor": 0.45,
    "int8-tensor-sym/a8-static": 0.4,
}
"""Scheme → what a layer of it costs in the resampled searches, in float16 layers. A stand-in for measured prices that pulls
the search towards the aggressive schemes, as real prices do."""

CLIPS = (0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3)
"""Static ranges cut to these shares of the calibrated ones, half of the layers and all of them: maps that do harm, as ranges
calibrated on the wrong data do. Each is taken to cost a little less, so that the search is tempted."""


@dataclass(frozen=True)
class Subject:
    """A model, a task, and the files whose rows are the population."""

    model: str
    task: str
    data: tuple[str, ...] = ()
    columns: Mapping[str, int] | None = None
    sizes: Mapping[str, int] | None = None
    mixes: int = 24


SUBJECTS = {
    "minilm-sst2": Subject("minilm-sst2", "classification", ("sst2/dev.tsv", "sst2/test.tsv"), {"text": 0, "label": 1}),
    "minilm-docstrings": Subject(
        "minilm", "retrieval", sizes={"calibration": 128, "search": 8, "certification": 600}, mixes=4
    ),
    "dinov2-cifar10": Subject(
        "dinov2-cifar10", "image-classification", ("cifar10/cifar10_subset.npz",),
        sizes={"calibration": 64, "search": 8, "certification": 800}, mixes=8,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Outcomes:
    """Of one subject.

    Attributes:
        values: (maps, items), one value in [0, 1] an item; row 0 is the float32 model.
        labels: names of the rows.
        cost, divergence: (maps,) cost by `PRICES`, and measured divergence from the float32 model in nats.
        metric: what the mean of a row is.
        clusters: (items,) number of the cluster of each item; None: each is one.
    """

    values: np.ndarray
    labels: tuple[str, ...]
    cost: np.ndarray
    divergence: np.ndarray
    metric: str
    clusters: np.ndarray | None = None


def outcomes(name: str, models: Path, data: Path, work: Path, seed: int, threads: int | None) -> Outcomes:
    """From `work`, or computed there; each map is written when it is done, so that a killed run goes on."""
    subject, folder = SUBJECTS[name], work / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "all.npz").is_file():
        _compute(subject, models, data, folder, seed, threads)
    with np.load(folder / "all.npz") as file:
        labels = tuple(str(label) for label in file["labels"])
        clusters = _modules(subject, seed) if subject.task == "retrieval" and not subject.data else None
        return Outcomes(file["values"], labels, file["cost"], file["divergence"], str(file["metric"]), clusters)


def _modules(subject: Subject, seed: int) -> np.ndarray:
    """(items,) number of the source file of each docstring: one author, one subject, so perhaps one fate."""
    found = split_pairs(seed, subject.sizes)["certification"]
    return np.unique([pair.module for pair in found], return_inverse=True)[1]


def _compute(subject: Subject, models: Path, data: Path, folder: Path, seed: int, threads: int | None) -> None:
    need(models / subject.model, *(data / part for part in subject.data))
    with tempfile.TemporaryDirectory() as scratch:
        source = None
        if subject.data:
            source = data / subject.data[0]
            if len(subject.data) > 1:
                source = Path(scratch) / f"population{source.suffix}"
                source.write_text("\n".join((data / part).read_text(encoding="utf8").strip() for part in subject.data))
        settings = Settings(
            model=str(models / subject.model), task=subject.task, data=source and str(source), columns=subject.columns,
            sizes=subject.sizes or {"calibration": 64, "search": 8}, seed=seed, threads=threads,
        )  # fmt: skip
        session = Session(settings, folder / "session", Progress(quiet=True))
        session.folder.mkdir(exist_ok=True)
        ranges = input_absmax(profile_stage(session))
        found = [_float(session, folder)]
        for label, layers, clip in tqdm(list(_maps(session, subject.mixes, seed)), unit="map"):
            session.assembler.input_absmax.update({name: clip * value for name, value in ranges.items()})
            if clip != 1:  # layers that keep their scheme are built anew with the new ranges
                session.assembler.assemble({}, BASE)
                session.assembler.forget()
            found.append(_one(session, label, layers, found[0], folder, 0.9 + 0.1 * clip))
        with atomic(folder / "all.npz") as temporary, open(temporary, "wb") as file:
            np.savez(
                file, values=np.stack([one["values"] for one in found]), labels=[str(one["label"]) for one in found],
                cost=[float(one["cost"]) for one in found], divergence=[float(one["divergence"]) for one in found],
                metric=session.task.metric, fragility=found[0]["fragility"],  # for `benchmarks.strategies racing`
            )  # fmt: skip


def _maps(session: Session, mixes: int, seed: int) -> Iterator[tuple[str, dict[str, str], float]]:
    """Label, layers and share of the static ranges: half precision, uniform maps, random mixes from mild to aggressive, and
    clipped ones."""
    layers = [layer for layer in session.inventory.layers if layer.kind == "linear"]
    for scheme in PRICES:
        yield scheme, {layer.name: scheme for layer in layers}, 1.0
    rng = np.random.default_rng(seed)
    names = list(PRICES)
    for number in range(mixes):
        tilt = np.linspace(-1.5, 1.5, len(names)) * (2 * number / max(1, mixes - 1) - 1)
        chances = np.exp(tilt) / np.exp(tilt).sum()
        yield f"mix {number}", {layer.name: str(rng.choice(names, p=chances)) for layer in layers}, 1.0
    static = "int8-tensor-sym/a8-static"
    for clip in CLIPS:
        yield f"clipped to {clip}", {layer.name: static for layer in layers}, clip
        half = {layer.name: static if rng.random() < 0.5 else "int8-channel-sym/a8-token" for layer in layers}
        yield f"half clipped to {clip}", half, clip


def _float(session: Session, folder: Path) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        found = evaluate_split(session.model, session.task, "certification", is_reference=True)
        fragile = fragility(session.task, "certification", found.reduced, session.settings.seed)
        return {
            "values": found.values, "reduced": found.reduced.numpy(), "cost": 2.0, "divergence": 0.0,
            "fragility": np.zeros(0) if fragile is None else fragile,
        }  # fmt: skip

    return _kept(folder, "float32", measure)


def _one(
    session: Session, label: str, layers: dict[str, str], base: dict[str, Any], folder: Path, price: float
) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        model = session.assembler.assemble(layers, BASE)
        found = evaluate_split(model, session.task, "certification")
        nats = divergence(found.reduced, torch.from_numpy(base["reduced"]), session.task.output_kind).mean()
        cost = price * float(np.mean([PRICES[scheme] for scheme in layers.values()]))
        return {"values": found.values, "cost": cost, "divergence": float(nats)}

    return _kept(folder, label, measure)


def _kept(folder: Path, label: str, measure: Any) -> dict[str, Any]:
    path = folder / f"{label.replace('/', '_').replace(' ', '-')}.npz"
    if not path.is_file():
        found = {"label": label, **measure()}
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **found)
    with np.load(path) as file:
        return {key: file[key] for key in file.files}
