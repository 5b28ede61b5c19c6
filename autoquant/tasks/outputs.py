"""Call a model and take the tensor that a task judges out of whatever it returns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.errors import DataError, ModelError, NumericsError, nearest
from autoquant.tasks.base import Batch


def call(model: nn.Module, batch: Batch, field: str, **more: Any) -> Tensor:
    """`model(**batch)` and of its result: the tensor itself, attribute or key `field`, or a tuple's first entry.

    Returns:
        float32, differentiable.

    Raises:
        ModelError: the result holds no such tensor.
    """
    output = model(**{key: value for key, value in batch.items() if key != "rows"}, **more)
    return _tensor(output, field).float()


def _tensor(output: Any, field: str) -> Tensor:
    if isinstance(output, Tensor):
        return output
    value = output.get(field) if isinstance(output, Mapping) else getattr(output, field, None)
    if value is None and isinstance(output, tuple | list) and output:
        value = output[0]
    if not isinstance(value, Tensor):
        raise ModelError(
            f"The model returns a {type(output).__name__} without '{field}', which this task judges. Choose another "
            "--task, or in Python pass forward=function(model, batch) that returns the tensor."
        )
    return value


def no_cache(model: nn.Module) -> dict[str, bool]:
    """Keyword that stops a transformers language model from keeping keys and values that nobody reads."""
    return {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}


def finite(reduced: Tensor, rows: int) -> Tensor:
    """`reduced` if it has `rows` rows and every number is finite.

    Raises:
        NumericsError: NaN or infinity, with the first row that holds one.
    """
    if len(reduced) != rows:
        raise ValueError(f"score needs the kept outputs of all {rows} rows of the split in order, not {len(reduced)}")
    if reduced.is_floating_point() and not torch.isfinite(reduced).all():
        bad = (~torch.isfinite(reduced.reshape(len(reduced), -1))).any(1).nonzero()[:, 0]
        raise NumericsError(
            f"The model's output is NaN or infinite in {len(bad)} of {rows} rows, first in {int(bad[0])}."
        )
    return reduced


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weight = mask[..., None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.long().argmax(1)]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    place = mask.shape[1] - 1 - mask.long().flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), place]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": _first,
    "lasttoken": _last,
    "max": _max,
}
"""Hidden states (rows, positions, width) and attention mask (rows, positions) → (rows, width), padding ignored."""

LEGACY = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
"""Switches in the pooling config of sentence-transformers before version 5.4 → what is now called `pooling_mode`."""

RUN_MODULES = ("Transformer", "Pooling", "Normalize")
"""Steps of a sentence-transformers pipeline that this file does."""


@dataclass(frozen=True)
class Embedding:
    """How hidden states become one unit vector a row.

    Attributes:
        pooling: a key of `POOLINGS`.
        max_length: longest text in tokens, or None where the folder does not say.
        query, document: what is put before a query and a document.
    """

    pooling: str = "mean"
    max_length: int | None = None
    query: str = ""
    document: str = ""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ModelError(
                f"This model pools by '{self.pooling}', which is not known.{nearest(self.pooling, POOLINGS)}"
            )

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """(rows, positions, width), or pooled already (rows, width), to unit vectors (rows, width)."""
        if output.ndim == 3:
            mask = batch.get("attention_mask")
            mask = torch.ones(output.shape[:2], device=output.device) if mask is None else mask
            output = POOLINGS[self.pooling](output, mask)
        elif output.ndim != 2:
            raise DataError(
                f"An embedding model gives (rows, positions, width) or (rows, width), not {tuple(output.shape)}."
            )
        return nn.functional.normalize(output, dim=-1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, processor: Any) -> Embedding:
        """What the sentence-transformers files beside the tokenizer say; mean over the mask where there are none.

        Raises:
            ModelError: the pipeline has a step that autoquant does not run, or pools in an unknown way.
        """
        folder = Path(str(getattr(processor, "name_or_path", "") or "\0"))
        modules = _json(folder / "modules.json", [])
        kinds = [str(module.get("type", "")).split(".")[-1] for module in modules]
        unknown = [kind for kind in kinds if kind not in RUN_MODULES]
        if unknown:
            raise ModelError(
                f"The sentence-transformers pipeline in {folder} has the step {unknown[0]}, which autoquant does not "
                "run. In Python, pass forward=function(model, batch) that returns the embedding."
            )
        place = next((m["path"] for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), "1_Pooling")
        prompts = _json(folder / "config_sentence_transformers.json", {}).get("prompts") or {}
        return cls(
            pooling=_pooling_mode(_json(folder / place / "config.json", {})),
            max_length=_json(folder / "sentence_bert_config.json", {}).get("max_seq_length"),
            query=prompts.get("query") or "",
            document=prompts.get("document") or prompts.get("passage") or "",
        )


def _pooling_mode(config: Mapping[str, Any]) -> str:
    mode = config.get("pooling_mode") or [name for key, name in LEGACY.items() if config.get(key)] or "mean"
    modes = [mode] if isinstance(mode, str) else list(mode)
    return modes[0] if len(modes) == 1 else "+".join(modes)


def _json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return default
