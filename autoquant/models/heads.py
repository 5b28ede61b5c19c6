"""What a transformers class name says about a model: what comes out of it, and how to load and judge it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """One kind of model output.

    Attributes:
        kind: `embedding` (hidden states), `classifier` (rows of logits) or `causal-lm` (logits of every position).
        auto_class: the transformers class that loads it.
        task: the task that judges it unless the user names another.
    """

    kind: str
    auto_class: str
    task: str


HEADS: dict[str, Head] = {
    "ForSequenceClassification": Head("classifier", "AutoModelForSequenceClassification", "classification"),
    "ForImageClassification": Head("classifier", "AutoModelForImageClassification", "image-classification"),
    "ForCausalLM": Head("causal-lm", "AutoModelForCausalLM", "causal-lm"),
    "LMHeadModel": Head("causal-lm", "AutoModelForCausalLM", "causal-lm"),
    "Model": Head("embedding", "AutoModel", "retrieval"),
}
"""Ending of the class name → head; the first that fits wins (`GPT2LMHeadModel` also ends in `Model`)."""

AUTO_CLASSES = tuple(dict.fromkeys(head.auto_class for head in HEADS.values()))


def head_of(class_name: str) -> Head | None:
    """The head of a transformers model class such as `BertForSequenceClassification`; None for any other class."""
    return next((head for ending, head in HEADS.items() if class_name.endswith(ending)), None)
