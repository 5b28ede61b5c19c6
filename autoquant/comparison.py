"""Judge any checkpoint against the model that it was made from, on any labelled data: `autoquant certify`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoquant import artifacts, forkserver
from autoquant.certify import judge
from autoquant.certify.ledger import Use, charge, sketch, state_folder
from autoquant.certify.worker import job_of, run_job
from autoquant.checkpoint import read_layer_map
from autoquant.checkpoint.formats import FORMATS
from autoquant.errors import UsageError, pick
from autoquant.evaluation import saved_values
from autoquant.exports import export_in
from autoquant.models.layers import fingerprint_model
from autoquant.models.loading import architectures, load_model, resolve, task_for
from autoquant.reuse import map_fingerprint
from autoquant.session import Progress, now
from autoquant.summary import ITEM_WORDS
from autoquant.tasks import TASKS, DataTask, Facts, make
from autoquant.tasks.clusters import CLUSTER_ROLE
from autoquant.values import Budget, LayerMap

RECORD = "layer_map.yaml"
RECORDED = "recorded"
"""Confidence as the checkpoint's layer map has it, or 0.95."""


@dataclass(frozen=True)
class Pair:
    """A checkpoint, the model that it is judged against, and what it is judged by.

    Attributes:
        checkpoint, against: as they were typed; `path` and `against_path` the folders.
        task, columns, metric, seed, max_length: of the task, the checkpoint's own where nothing was asked.
        processor, facts: of the model that it is judged against; both models get the same inputs.
        fingerprint: of that model's weights.
        record: the checkpoint's layer map, if it has one.
    """

    checkpoint: str
    path: Path
    against: str
    against_path: Path
    task: str
    columns: Mapping[str, str | int]
    metric: str | None
    seed: int
    max_length: int | None
    budget: Budget
    processor: Any
    facts: Facts
    fingerprint: str
    record: LayerMap | None
    trust_remote_code: bool

    def make(self, data: str | Path | None, sizes: Mapping[str, int] | None = None) -> DataTask:
        """The task on all of `data`; on the certification split of the embedded docstrings without."""
        return make(
            self.task, data, self.processor, columns=self.columns, seed=self.seed, max_length=self.max_length,
            sizes=sizes, metric=self.metric, model=self.facts, undivided=True,
        )  # fmt: skip

    def items(self) -> dict[str, dict[str, Any]]:
        """How a fresh process opens the two models."""
        trust = {"trust_remote_code": self.trust_remote_code}
        reference: dict[str, Any] = {"path": str(self.against_path), **trust}
        if _quantization(self.against_path) is None and export_in(self.against_path) is None:
            reference["float"] = True
        judged: dict[str, Any] = {"path": str(self.path), **trust}
        if _foreign(self.path):
            judged["stock"] = True
        return {"float32": reference, "checkpoint": judged}


def pair_of(
    checkpoint: str | Path,
    against: str | Path | None = None,
    *,
    task: str | None = None,
    data: str | Path | None = None,
    budget: float | None = None,
    relative: bool | None = None,
    confidence: float | str | None = RECORDED,
    columns: Mapping[str, str | int] | None = None,
    cluster: str | int | None = None,
    metric: str | None = None,
    max_length: int | None = None,
    seed: int | None = None,
    trust_remote_code: bool = False,
) -> Pair:
    """What is to be judged; whatever was not asked is taken from the checkpoint's layer map.

    Raises:
        UsageError: there is no such checkpoint, no model to judge it against, or no task to judge it by.
    """
    path = resolve(str(checkpoint))
    record = read_layer_map(path) if (path / RECORD).is_file() else None
    found_on: Mapping[str, Any] = record.found_on if record is not None else {}
    before: Mapping[str, Any] = found_on.get("task") or {}
    allowed: Mapping[str, Any] = found_on.get("budget") or {}
    source = str(against) if against is not None else str((record.model if record else {}).get("name") or "")
    if not source:
        raise UsageError(f"Say which model {checkpoint} was made from: --against MODEL (a folder or a hub id).")
    against_path = resolve(source)
    name = task or before.get("task") or (task_for(against_path) if data is not None else "retrieval")
    if name is None:
        raise UsageError(f"Say what the models are judged by: --task, one of {', '.join(TASKS)}.")
    pick(TASKS, name, "task")
    same = name == before.get("task")
    # Another file may have other columns: those of the layer map are for data that were not named.
    kept = dict(columns) if columns is not None else dict(before.get("columns") or {}) if same else {}
    if cluster is not None:
        kept[CLUSTER_ROLE] = cluster
    level = allowed.get("confidence", 0.95) if confidence == RECORDED else confidence
    loaded = load_model(
        source, TASKS[name].auto_class_for(architectures(against_path)), trust_remote_code=trust_remote_code
    )
    return Pair(
        checkpoint=str(checkpoint),
        path=path,
        against=source,
        against_path=against_path,
        task=name,
        columns=kept,
        metric=metric or (before.get("metric") if same else None),
        seed=seed if seed is not None else int(before.get("seed") or 0),
        max_length=max_length,
        budget=Budget(
            float(allowed.get("drop", 0.01)) if budget is None else budget,
            bool(allowed.get("relative", False)) if relative is None else relative,
            level,  # type: ignore[arg-type]
        ),
        processor=loaded.processor,
        facts=Facts.of(loaded.model),
        fingerprint=fingerprint_model(loaded.model),
        record=record,
        trust_remote_code=trust_remote_code,
    )


@forkserver.serving()
def certify(
    checkpoint: str | Path,
    against: str | Path | None = None,
    data: str | Path | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    eval_batch_size: int = 32,
    threads: int | None = None,
    quiet: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Is the drop of `checkpoint` against the model it was made from within a budget, on data that nobody tuned on?

    Both models run in fresh processes on all items of `data`, with the same inputs; the items' outcomes are compared in
    pairs. The checkpoint is opened by `autoquant.load`, or by transformers where another tool wrote it.

    Args:
        checkpoint: folder of a checkpoint or an export, or a hub id.
        against: the float model; by default the one that the layer map names.
        data: file, folder or hub id; None for the certification split of the embedded docstrings.
        sizes: `{"certification": N}` judges N items of them, by chance.
        options: `task`, `metric`, `columns`, `seed`, `budget`, `relative`, `confidence` (by default those that the
            checkpoint's layer map records), `cluster` (a column whose equal values are no independent items), `max_length`,
            `trust_remote_code`.

    Returns:
        `verdict` (PASS, FAIL, INCONCLUSIVE), `metric`, `budget`, `use` of these data, `notes`, and what was judged.

    Raises:
        UsageError: something in the request cannot work.
        AutoquantError: a model cannot be opened, or gives NaN.
    """
    if threads:
        torch.set_num_threads(threads)
    progress = Progress(quiet)
    pair = pair_of(checkpoint, against, data=data, **options)
    task = pair.make(data, sizes)
    found = charge(_use(pair, task), pair.budget.confidence, (state_folder(),))
    for text in (*_warnings(pair, data), found.words(), *found.notes):
        if text is not None:
            progress.note(text)
    with artifacts.scratch_folder() as folder:
        before, after = (
            _values(pair, task, name, folder, progress, eval_batch_size) for name in ("float32", "checkpoint")
        )
    verdict = judge(task, "certification", before, after, pair.budget, seed=pair.seed, confidence=found.confidence)
    verdict = replace(verdict, use=found.number)
    return {
        "verdict": verdict.status,
        "checkpoint": pair.checkpoint,
        "against": pair.against,
        "created": now(),
        "task": task.describe(),
        "budget": {
            "drop": pair.budget.drop,
            "relative": pair.budget.relative or task.relative,
            "confidence": pair.budget.confidence,
        },
        "metric": {
            "name": task.metric,
            "item": ITEM_WORDS.get(task.name, "item"),
            "higher_is_better": task.higher_is_better,
            "float": verdict.float_value,
            "quantized": verdict.quantized_value,
            **{
                key: getattr(verdict, key)
                for key in ("drop", "upper_bound", "lower_bound", "confidence", "n", "method", "needed", "clusters")
            },
            "changed": int((before != after).sum()),
        },
        "use": {"number": found.number, "earlier": list(found.earlier)},
        "notes": list(progress.notes),
    }


def _values(pair: Pair, task: DataTask, name: str, folder: Path, progress: Progress, batch_size: int) -> np.ndarray:
    """Item values of one of the two models, from a process of its own."""
    progress.say(f"  judging {'the float model' if name == 'float32' else pair.checkpoint} in a fresh process …")
    common = job_of(task, pair.against_path, trust_remote_code=pair.trust_remote_code, quiet=progress.quiet)
    job = {
        **common,
        "kind": "evaluate",
        "model": pair.items()[name],
        "split": "certification",
        "batch_size": batch_size,
        "reference": None if name == "float32" else str(folder / "float32.npz"),
    }
    return saved_values(run_job(job, folder, name)["values"])


def _use(pair: Pair, task: DataTask) -> Use:
    what = weights_fingerprint(pair.path) if pair.record is None else map_fingerprint(pair.record)
    label = f"certify {Path(pair.checkpoint).name}"
    return Use(pair.fingerprint, (what,), sketch(task.digests("certification")), now(), label)


def weights_fingerprint(folder: Path) -> str:
    """16 hex digits over the content of the weight files of a checkpoint or an export."""
    digest = hashlib.sha256()
    found = export_in(folder)
    for file in sorted(folder.glob("*.safetensors" if found is None else found.weights)):
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _warnings(pair: Pair, data: str | Path | None) -> list[str]:
    """What a PASS on these data would not mean."""
    notes = []
    recorded = (pair.record.found_on.get("task") or {}) if pair.record is not None else {}
    if data is not None and recorded.get("data") == Path(data).name and not recorded.get("test_data"):
        notes.append(
            f"{pair.checkpoint} was searched on a part of {Path(data).name}: what it is judged on here is no data that the "
            "search never saw."
        )
    if pair.budget.confidence is None:
        notes.append("The budget is judged on the point estimate, without confidence (--confidence none).")
    return notes


def _quantization(folder: Path) -> Mapping[str, Any] | None:
    file = folder / "config.json"
    return artifacts.read_json(file).get("quantization_config") if file.is_file() else None


def _foreign(folder: Path) -> bool:
    """Whether another tool quantized it, in a way that autoquant does not read."""
    found = _quantization(folder)
    return found is not None and str(found.get("quant_method")) not in FORMATS
