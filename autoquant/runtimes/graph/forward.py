"""Put a captured graph in the place of a model's forward pass; what a graph cannot hold runs as it was written."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import Cache

from autoquant.memory import trim
from autoquant.runtimes.graph import cache, store
from autoquant.runtimes.graph.attention import CACHE
from autoquant.runtimes.graph.capture import Captured, capture
from autoquant.runtimes.graph.lower import Lowered, lower
from autoquant.runtimes.graph.plain import from_plain
from autoquant.runtimes.graph.replay import Plan, make_plan
from autoquant.runtimes.native import avx512

log = logging.getLogger(__name__)
Key = tuple[Any, ...]
SMALL = 4096
"""Elements of all inputs up to which calls are worth replaying."""
FEW = 32
"""Calls of one signature with a cache before it is captured."""
PLANS = 32
"""Shapes whose plans are kept."""
NEVER = object()
"""In the place of a plan that cannot be made."""


class GraphForward:
    """Calls of one signature share a graph: the same arguments, of the same dtypes and, but for batch and length, shapes.

    A call that is not plain inference on the CPU, or whose graph cannot be captured, runs the model's own forward.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._forward: Callable[..., Any] = model.forward
        self.captured: dict[Key, Captured | None] = {}
        self.checked: set[Key] = set()
        self.lowered: dict[Key, Lowered] = {}
        self.plans: dict[Key, Any] = {}
        self.calls: Counter[Key] = Counter()
        self.__signature__ = inspect.signature(model.forward)
        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self._names = [name for name, p in self.__signature__.parameters.items() if p.kind is positional]
        self._cache = cache.name_of(model.forward)

    def eager(self, **inputs: Any) -> Any:
        """The model's own forward."""
        return self._forward(**cache.renamed(inputs, cache.NAME, self._cache))

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        if len(args) > len(self._names):
            return self._forward(*args, **inputs)
        inputs = {**dict(zip(self._names, args, strict=False)), **inputs}
        if isinstance(inputs.get(self._cache), Cache):
            inputs = cache.renamed(inputs, self._cache, cache.NAME)
        inputs = _without_idle_mask(inputs)
        key = self._key(inputs)
        if key is None:
            return self.eager(**inputs)
        if key not in self.lowered and not (self._often(key, inputs) and self._prepare(key, inputs)):
            return self.eager(**inputs)
        captured = self.captured[key]
        given = _tensors(inputs)
        if captured is None or not captured.fits(given):
            return self.eager(**inputs)
        lowered = self.lowered[key]
        if cache.NAME in inputs:
            return _with_cache(lowered, inputs, given)
        if sum(inputs[name].numel() for name in captured.inputs) <= SMALL:
            shape = (key, torch.get_num_threads(), *(inputs[name].shape for name in captured.inputs))
            plan = self._plan(shape, lowered, inputs)
            if plan is not None and plan.free.acquire(blocking=False):
                try:
                    return plan.run(inputs)
                finally:
                    plan.free.release()
        return lowered.run(**inputs)

    def _plan(self, shape: Key, lowered: Lowered, inputs: dict[str, Any]) -> Plan | None:
        """Of the shapes that were called last, `PLANS` at most. A shape gets its plan when it comes the second time."""
        if shape in self.plans:
            plan = self.plans.pop(shape)
            self.plans[shape] = plan or make_plan(lowered, inputs) or NEVER
        else:
            self.plans[shape] = None
            while len(self.plans) > PLANS:
                del self.plans[next(iter(self.plans))]
        found = self.plans[shape]
        return found if isinstance(found, Plan) else None

    def forget(self) -> None:
        """Layers have been exchanged: lower the graphs again when they are next called."""
        self.lowered.clear()
        self.plans.clear()

    def _often(self, key: Key, inputs: dict[str, Any]) -> bool:
        """A capture takes seconds. A call with a cache is short, and waits until as long has been spent without it."""
        if cache.NAME not in inputs or self.calls[key] > FEW:
            return True
        self.calls[key] += 1
        if self.calls[key] == 1 and (entry := self._entry(key)) is not None and entry.exists():
            self.calls[key] = FEW + 1
        return self.calls[key] > FEW

    def _prepare(self, key: Key, inputs: dict[str, Any]) -> bool:
        entry = self._entry(key)
        if key not in self.captured:
            self.captured[key] = self._read(key, entry) or self._capture(inputs)
        found = self.captured[key]
        if found is None:
            return False
        lowered = lower(found, self.model)
        if key not in self.checked:
            self.checked.add(key)
            if not _agree(_run(lowered, copy.deepcopy(inputs)), _call(self.eager, copy.deepcopy(inputs))):
                log.warning(
                    "The graph of %s computes something else than the model: not used.", type(self.model).__name__
                )
                self.captured[key] = None
                return False
            if entry is not None and (plain := store.plain_of(found)) is not None:
                entry.write(plain)
        self.lowered[key] = lowered
        trim()
        return True

    def _entry(self, key: Key) -> store.Entry | None:
        return store.entry(self.model, key[1:])  # one row or several: captured alike

    def _read(self, key: Key, entry: store.Entry | None) -> Captured | None:
        """What an earlier process has captured, and perhaps compared with the model."""
        found = None if entry is None else entry.read(self.model)
        if found is None:
            return None
        captured, is_checked = found
        if is_checked:
            self.checked.add(key)
        return captured

    def _capture(self, inputs: dict[str, Any]) -> Captured | None:
        try:
            captured = capture(self.model, inputs)
        except Exception as error:  # torch.export raises many kinds; the model's own forward computes the same
            log.info("The graph of %s cannot be captured: %s", type(self.model).__name__, error)
            return None
        plain = store.plain_of(captured)
        return captured if plain is None else from_plain(plain, self.model)  # without what torch.export holds on to

    @staticmethod
    def _key(inputs: dict[str, Any]) -> Key | None:
        if torch.is_grad_enabled() or not avx512.available() or torch.compiler.is_compiling():
            return None
        key: list[Any] = [all(value.shape[0] == 1 for value in inputs.values() if isinstance(value, Tensor))]
        decoding = cache.NAME in inputs
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                single = value.dim() == 2 and value.shape[1] < 2
                if value.device.type != "cpu" or value.dim() < 2 or (single and not decoding):
                    return None
                key.append((name, value.dtype, value.shape[1:] if value.dim() > 2 or single else 2))
            elif name == cache.NAME and value is not None:
                length = cache.length_of(value)
                if length is None:
                    return None
                key.append((name, length > 0))
            elif value is None or isinstance(value, bool | int | float | str):
                key.append((name, value))
            else:
                return None
        return tuple(key) if len(key) > 1 else None

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphForward:
        model = memo[id(self.model)] if id(self.model) in memo else copy.deepcopy(self.model, memo)
        twin = GraphForward.__new__(GraphForward)
        twin.model, twin._forward, twin._cache = model, type(model).forward.__get__(model), self._cache
        twin.captured, twin.checked, twin.lowered, twin.plans, twin.calls = {}, set(), {}, {}, Counter()
        twin.__signature__, twin._names = self.__signature__, self._names
        return twin


def _tensors(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a graph: of a cache, a tensor that is as long."""
    past = inputs.get(cache.NAME)
    if past is None:
        return inputs
    length = {cache.NAME: past.layers[0].keys} if past.get_seq_length() else {}
    return {**{name: value for name, value in inputs.items() if name != cache.NAME}, **length}


def _with_cache(lowered: Lowered, inputs: dict[str, Any], given: dict[str, Any]) -> Any:
    out = lowered.run(**given, **{CACHE: inputs[cache.NAME]})
    return type(out)(**{**out, cache.returned(type(out)): inputs[cache.NAME]})


def _run(lowered: Lowered, inputs: dict[str, Any]) -> Any:
    """What the graph returns, and leaves in the cache."""
    past = inputs.get(cache.NAME)
    if past is None:
        return lowered.run(**inputs)
    return _opened(_with_cache(lowered, inputs, _tensors(inputs)), past)


def _call(eager: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """What the model returns, and leaves in the cache."""
    past = inputs.get(cache.NAME)
    if past is None:
        return eager(**inputs)
    return _opened(eager(**inputs), past)


def _opened(out: Any, past: Any) -> dict[str, Any]:
    """An output with the tensors of its cache in the place of the cache."""
    return {**out, cache.returned(type(out)): [(own.keys, own.values) for own in past.layers]}


def _without_idle_mask(inputs: dict[str, Any]) -> dict[str, Any]:
    """No mask instead of one that hides nothing: the graph then has no mask at all."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and not mask.is_floating_point() and bool(mask.all()):
        return {name: value for name, value in inputs.items() if name != "attention_mask"}
    return inputs


def _agree(a: Any, b: Any) -> bool:
    """The same tensors in the same places, and not far apart: rounding activations to int8 doubles any small difference."""
    left, right = tree_leaves(a), tree_leaves(b)
    if len(left) != len(right):
        return False
    for x, y in zip(left, right, strict=True):
        if isinstance(x, Tensor) != isinstance(y, Tensor):
            return False
        if isinstance(x, Tensor):
            if x.shape != y.shape or x.dtype is not y.dtype:
                return False
            if x.is_floating_point() and bool(torch.isfinite(y).all()) and _distance(x, y) > FAR:
                return False
    return True


def _distance(x: Tensor, y: Tensor) -> float:
    """Relative L2, without copies of large tensors in another dtype."""
    apart = size = 0.0
    for a, b in zip(x.reshape(-1).split(CHUNK), y.reshape(-1).split(CHUNK), strict=True):
        apart += float((a.float() - b.float()).square().sum())
        size += float(b.float().square().sum())
    return math.sqrt(apart) / max(math.sqrt(size), 1e-6)


CHUNK = 2**16


FAR = 0.7
"""Relative distance of outputs that no difference in rounding explains; unrelated ones are 1.4 apart."""


@contextlib.contextmanager
def decelerated(model: nn.Module) -> Iterator[nn.Module]:
    """While open, the model runs as it was written, and its layers' hooks are called."""
    forward = model.__dict__.pop("forward", None)
    try:
        yield model
    finally:
        if forward is not None:
            model.forward = forward  # type: ignore[method-assign]


def as_written(model: nn.Module) -> nn.Module:
    """The model as its code says, from now on."""
    model.__dict__.pop("forward", None)
    return model


def refresh(model: nn.Module) -> None:
    """Layers of `model` have been exchanged."""
    forward = model.__dict__.get("forward")
    if isinstance(forward, GraphForward):
        forward.forget()


def accelerate(model: nn.Module) -> nn.Module:
    """Let `model` run from graphs where it can; without the kernels, or with AUTOQUANT_GRAPH=0, nothing changes."""
    wanted = os.environ.get("AUTOQUANT_GRAPH") != "0" and avx512.available()
    if wanted and not isinstance(model.__dict__.get("forward"), GraphForward):
        model.forward = GraphForward(model)  # type: ignore[method-assign]
    return model
