"""A layer of a model that can be quantized, and layers that must be decided together."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT_DTYPES = ("float32", "bfloat16", "float16")
KINDS = ("linear", "conv1d", "conv2d", "embedding")
"""`conv1d` is GPT-2's transposed Linear (transformers.pytorch_utils.Conv1D), not torch.nn.Conv1d."""


@dataclass(frozen=True)
class Layer:
    """One quantizable module.

    Attributes:
        name: the name in `model.named_modules()`.
        kind: one of `KINDS`.
        shape: (out, in) of the weight matrix that is quantized; a Conv2d's is (out, in · kh · kw), an Embedding's
            (rows, width), a Conv1D's the transposed of what it stores.
        has_bias: whether a bias is added (it stays in the base dtype).
        tied_to: the name of the layer that owns the weight, when the weight is shared; None for the owner.
        patchify: for a Conv2d whose kernel equals its stride without padding: it is a Linear over patches.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    has_bias: bool = False
    tied_to: str | None = None
    patchify: bool = False

    @property
    def params(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Group:
    """Layers that share one choice: a weight tied between them, or a projection that an engine fuses (q/k/v).

    The scheme chosen for the group is projected on each member: an embedding takes its weight part only.
    """

    name: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Skipped:
    """A module with weights that autoquant leaves in the base dtype, and why."""

    name: str
    type: str
    params: int
    reason: str
