"""Put an engine that compiles whole graphs in the place of a model's forward pass."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from autoquant.errors import ModelError
from autoquant.runtimes.graph.capture import Captured

log = logging.getLogger(__name__)
Key = tuple[Any, ...]
Run = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Engine:
    """How an engine serves a model.

    Attributes:
        capture: the graph of a model for these inputs; it holds for every layer map. Raises ModelError: it has none.
        compile: (graph, model with the layers as they are now) → the graph's outputs for the tensors of its inputs, in order.
    """

    name: str
    capture: Callable[[nn.Module, Mapping[str, Any]], Captured]
    compile: Callable[[Captured, nn.Module], Run]


class EngineForward:
    """Calls of one signature share a compiled graph: the same arguments, of the same dtypes and, but for batch and length,
    shapes. What cannot be captured (a cache handed in, say) runs the model's own forward, layer by layer, and says so once.
    """

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self.model = model
        self.engine = engine
        self.eager: Callable[..., Any] = model.forward
        self.captured: dict[Key, Captured | None] = {}
        self.compiled: dict[Key, Run] = {}
        self.__signature__ = inspect.signature(model.forward)

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        names = list(self.__signature__.parameters)
        if len(args) > len(names):
            return self.eager(*args, **inputs)
        inputs = {**dict(zip(names, args, strict=False)), **inputs}
        key = _key(inputs)
        captured = None if key is None else self._captured(key, inputs)
        if key is None or captured is None or not captured.fits(inputs):
            return self.eager(**inputs)
        if key not in self.compiled:
            self.compiled[key] = self.engine.compile(captured, self.model)
        outputs = self.compiled[key]([inputs[name] for name in captured.inputs])
        return tree_unflatten(outputs, captured.outputs)

    def forget(self) -> None:
        """Layers have been exchanged: compile the graphs again when they are next called."""
        self.compiled.clear()

    def _captured(self, key: Key, inputs: Mapping[str, Any]) -> Captured | None:
        if key not in self.captured:
            try:
                self.captured[key] = self.engine.capture(self.model, inputs)
            except ModelError as error:
                what = f"{self.engine.name} runs this call of {type(self.model).__name__} layer by layer, which is slow"
                log.warning("%s: %s", what, error)
                self.captured[key] = None
        return self.captured[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineForward:
        model = memo[id(self.model)] if id(self.model) in memo else copy.deepcopy(self.model, memo)
        twin = EngineForward.__new__(EngineForward)
        twin.model, twin.engine, twin.eager = model, self.engine, type(model).forward.__get__(model)
        twin.captured, twin.compiled, twin.__signature__ = {}, {}, self.__signature__
        return twin


def serve(model: nn.Module, engine: Engine) -> nn.Module:
    """`model`, which from now on runs as compiled graphs of `engine`."""
    if not isinstance(model.__dict__.get("forward"), EngineForward):
        model.forward = EngineForward(model, engine)  # type: ignore[method-assign]
    return model


def refresh(model: nn.Module) -> None:
    """Layers of `model` have been exchanged."""
    forward = model.__dict__.get("forward")
    if isinstance(forward, EngineForward):
        forward.forget()


def _key(inputs: Mapping[str, Any]) -> Key | None:
    key: list[Any] = []
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            key.append((name, value.dtype, value.shape[1:] if value.dim() > 2 else value.dim()))
        elif value is None or isinstance(value, bool | int | float | str):
            key.append((name, value))
        else:
            return None
    return tuple(key) or None
