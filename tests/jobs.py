"""A small job for whole searches: texts, and a classifier that is right about all of them."""

from __future__ import annotations

from pathlib import Path

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
