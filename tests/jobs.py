"""Small jobs: for whole searches a classifier that is right about all of its texts; one measurement, as a worker reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests import tiny


def labelled(folder: Path, model: Path, count: int = 400) -> Path:
    """Texts with the labels that the float model itself gives: its accuracy is 1."""
    texts = tiny.texts(count)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        labels = network(**batch).logits.argmax(-1).tolist()
    path = folder / "texts.csv"
    path.write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in zip(texts, labels, strict=True)), encoding="utf8")
    return path


def arguments(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["search", str(model), "--task", "classification", "--data", str(data), "--out", str(out), "--objective", "memory",
            "--budget", "0.2", "--trials", "8", "--threads", "1", *more]  # fmt: skip


def read(run: Path) -> dict[str, Any]:
    """The report of a run."""
    return json.loads((run / "report.json").read_text())


def evaluation(folder: Path) -> dict[str, Any]:
    """The job of measuring a tiny float classifier on 60 texts (see `certify.worker`)."""
    model, data = tiny.bert_classifier(folder / "model"), folder / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text, "label": n % 2}) + "\n" for n, text in enumerate(tiny.texts(60))))
    task = {"task": "classification", "data": str(data), "seed": 0, "undivided": True, "fingerprint": None}
    return {
        "kind": "evaluate", "task": task, "processor": str(model), "trust_remote_code": False, "split": "certification",
        "shape": {"batch_size": 2, "seq_len": 16}, "threads": 1, "quiet": True, "batch_size": 16, "reference": None,
        "model": {"path": str(model), "float": True, "trust_remote_code": False},
    }  # fmt: skip
