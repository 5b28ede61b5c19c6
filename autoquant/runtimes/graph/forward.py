"""Put a captured graph in the place of a model's forward pass; what a graph cannot hold runs as it was written."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.runtimes.graph.capture import Captured, capture
from autoquant.runtimes.graph.lower import lower
from autoquant.runtimes.native import avx512

log = logging.getLogger(__name__)
Key = tuple[Any, ...]


class GraphForward:
    """Calls of one signature share a graph: the same arguments, of the same dtypes and, but for batch and length, shapes.

    A call that is not plain inference on the CPU, or whose graph cannot be captured, runs the model's own forward.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.eager: Callable[..., Any] = model.forward
        self.captured: dict[Key, Captured | None] = {}
        self.lowered: dict[Key, Callable[..., Any]] = {}
        self.__signature__ = inspect.signature(model.forward)
        self._names = list(self.__signature__.parameters)

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        inputs = _without_idle_mask({**dict(zip(self._names, args, strict=False)), **inputs})
        key = self._key(inputs)
        if key is None:
            return self.eager(**inputs)
        if key not in self.lowered and not self._prepare(key, inputs):
            return self.eager(**inputs)
        return self.lowered[key](**inputs)

    def forget(self) -> None:
        """Layers have been exchanged: lower the graphs again when they are next called."""
        self.lowered.clear()

    def _prepare(self, key: Key, inputs: dict[str, Any]) -> bool:
        if key not in self.captured:
            try:
                self.captured[key] = capture(self.model, inputs)
            except Exception as error:  # torch.export raises many kinds; the model's own forward computes the same
                log.info("The graph of %s cannot be captured: %s", type(self.model).__name__, error)
                self.captured[key] = None
        found = self.captured[key]
        if found is None:
            return False
        self.lowered[key] = lower(found, self.model)
        return True

    @staticmethod
    def _key(inputs: dict[str, Any]) -> Key | None:
        if torch.is_grad_enabled() or not avx512.available() or torch.compiler.is_compiling():
            return None
        key: list[Any] = []
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                if value.device.type != "cpu" or value.dim() < 2 or value.dim() == 2 and value.shape[1] < 2:
                    return None
                key.append((name, value.dtype, value.shape[1:] if value.dim() > 2 else 2))
            elif value is None or isinstance(value, bool | int | float | str):
                key.append((name, value))
            else:
                return None
        return tuple(key)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphForward:
        import copy

        model = memo.get(id(self.model)) or copy.deepcopy(self.model, memo)
        twin = GraphForward.__new__(GraphForward)
        twin.model, twin.eager = model, type(model).forward.__get__(model)
        twin.captured, twin.lowered, twin.__signature__, twin._names = {}, {}, self.__signature__, self._names
        return twin


def _without_idle_mask(inputs: dict[str, Any]) -> dict[str, Any]:
    """No mask instead of one that hides nothing: the graph then has no mask at all."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and not mask.is_floating_point() and bool(mask.all()):
        return {name: value for name, value in inputs.items() if name != "attention_mask"}
    return inputs


def accelerate(model: nn.Module) -> nn.Module:
    """Let `model` run from graphs where it can; where the processor lacks the kernels, nothing changes."""
    if avx512.available() and not isinstance(model.__dict__.get("forward"), GraphForward):
        model.forward = GraphForward(model)  # type: ignore[method-assign]
    return model


def decelerate(model: nn.Module) -> nn.Module:
    """The model as it was written."""
    if isinstance(model.__dict__.get("forward"), GraphForward):
        del model.forward
    return model
