"""What a task must know of a model: plain data, so that a fresh process can rebuild the task without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from autoquant.errors import DataError
from autoquant.models.heads import head_of


@dataclass(frozen=True)
class Facts:
    """Read from a transformers model; all unknown for any other module.

    Attributes:
        head: `embedding`, `classifier`, `causal-lm`, or None when unknown.
        images: whether the model reads pixels.
        labels: width of a classifier's output, or None.
        label2id: label name → output, as the model's config has it.
        regression: whether a single output is a real number rather than the logit of a yes/no.
    """

    head: str | None = None
    images: bool = False
    labels: int | None = None
    label2id: Mapping[str, int] = field(default_factory=dict)
    regression: bool = False

    @classmethod
    def of(cls, model: nn.Module | Facts | None) -> Facts:
        """Facts of a model; facts pass through."""
        if isinstance(model, Facts):
            return model
        config = getattr(model, "config", None)
        if config is None:
            return cls()
        head = head_of(type(model).__name__)
        classifier = head is not None and head.kind == "classifier"
        label2id = (getattr(config, "label2id", None) or {}) if classifier else {}
        return cls(
            head=head.kind if head else None,
            images=getattr(model, "main_input_name", "input_ids") == "pixel_values",
            labels=getattr(config, "num_labels", None) if classifier else None,
            label2id={str(name): int(number) for name, number in label2id.items()},
            regression=getattr(config, "problem_type", None) == "regression",
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"label2id": dict(self.label2id)}

    @property
    def logits_kind(self) -> str:
        """`output_kind` of a classifier."""
        if self.labels == 1:
            return "regression" if self.regression else "bernoulli"
        return "softmax"


def label_numbers(values: Sequence[Any], facts: Facts, source: str, names: Sequence[str] = ()) -> list[int]:
    """Labels as output numbers of the model.

    A whole number is taken as it is; a name is looked up in the model's `label2id` (upper and lower case alike).
    `names` gives names to whole numbers (a data set's class list): where the model knows all those names, they decide.

    Raises:
        DataError: a missing label, a name or a number that the model does not have, with the names it has.
    """
    by_name = {name.casefold(): number for name, number in facts.label2id.items()}
    renumber = [by_name.get(str(name).casefold()) for name in names]
    known = bool(renumber) and None not in renumber
    if not known and any(number is not None for number in renumber):
        missing = [str(name) for name, number in zip(names, renumber, strict=True) if number is None]
        raise DataError(f"{source}: the model does not know the classes {', '.join(missing[:5])}. {_valid(facts)}")
    result = []
    for row, value in enumerate(values):
        number = _whole(value)
        if number is None and isinstance(value, str):
            number = by_name.get(value.strip().casefold())
        elif number is not None and known and 0 <= number < len(renumber):
            number = renumber[number]
        limit = max(facts.labels, 2) if facts.labels is not None else None
        if number is None or number < 0 or (limit is not None and number >= limit):
            raise DataError(f"{source}: row {row} has the label {value!r}. {_valid(facts)}")
        result.append(number)
    return result


def _whole(value: Any) -> int | None:
    if isinstance(value, str):
        value = value.strip()
        return int(value) if value.lstrip("-").isdecimal() else None
    try:
        return int(value) if int(value) == value else None
    except (TypeError, ValueError, OverflowError):
        return None


def _valid(facts: Facts) -> str:
    if not facts.label2id:
        return "Valid: whole numbers from 0, the model's output numbers. Name the column: --columns label=NAME"
    names = ", ".join(sorted(facts.label2id, key=lambda name: facts.label2id[name])[:20])
    numbers = f"whole numbers 0 to {max((facts.labels or 2), 2) - 1}"
    return f"The model has the labels: {names} (or {numbers}). Name the column: --columns label=NAME"
