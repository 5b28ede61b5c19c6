"""Layer names as a `quantization_config` writes them, and who they match in a model.

compressed-tensors compares a target (or an ignored name) with each module in three ways: a plain string with the whole
module name, a string that starts with `re:` by `re.match` against the module name, and a plain string with the names
of the module's classes. A name that merely ends or begins like a target does not match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn


def targets(names: Sequence[str], model: nn.Module) -> list[str]:
    """Patterns that match exactly these modules, whichever Auto class the checkpoint is opened with.

    A `BertForSequenceClassification` calls a layer `bert.encoder.layer.0…`, the `BertModel` opened from the same folder
    calls it `encoder.layer.0…`: the model's base prefix is therefore optional in every pattern. Layers that differ in
    their first number only (the block) share one pattern, so that the list stays short enough for people, and for
    readers that try each pattern on each module. Every pattern ends in `$`: `fc1` does not match `fc10`.
    """
    blocks: dict[tuple[str, str], list[str]] = {}
    for name in names:
        head, number, tail = _split(name)
        blocks.setdefault((head, tail), []).append(number)
    return [
        f"re:{_prefix(head, model)}{_numbers(numbers)}{re.escape(tail)}$" for (head, tail), numbers in blocks.items()
    ]


def match(name: str, module: nn.Module, patterns: Iterable[str]) -> str | None:
    """The pattern that compressed-tensors would choose for this module: exact name, then regex, then class name."""
    patterns = list(patterns)
    if name in patterns:
        return name
    for pattern in sorted(pattern for pattern in patterns if pattern.startswith("re:")):
        if re.match(pattern.removeprefix("re:"), name):
            return pattern
    classes = {cls.__name__ for cls in type(module).__mro__}
    return next((pattern for pattern in patterns if pattern in classes), None)


def _split(name: str) -> tuple[str, str, str]:
    found = re.match(r"^((?:[^.]+\.)*?)(\d+)((?:\..*)?)$", name)
    return (found.group(1), found.group(2), found.group(3)) if found else (name, "", "")


def _numbers(numbers: Sequence[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"


def _prefix(head: str, model: nn.Module) -> str:
    prefix = str(getattr(model, "base_model_prefix", ""))
    if not prefix:
        return re.escape(head)
    is_base = getattr(model, "base_model", None) is model
    if not is_base and not head.startswith(f"{prefix}."):
        return re.escape(head)
    return f"({re.escape(prefix)}\\.)?{re.escape(head if is_base else head.removeprefix(f'{prefix}.'))}"
