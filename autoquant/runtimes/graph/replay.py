"""Small inputs: replay a recorded list of kernel calls on fixed memory, for the calls themselves would take half the time.

A plan belongs to one graph and one shape. It is made by running the graph node by node: kernels leave their pointers on a
tape, views of memory need no replay, nor does what depends on shapes alone, and any other operation is run again into
the memory of its first result. Inputs are copied in, outputs are copied out.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_unflatten

from autoquant.runtimes.graph.lower import Lowered
from autoquant.runtimes.graph.nodes import changes_something
from autoquant.runtimes.native import avx512
from autoquant.runtimes.torch_runtime import Int8Embedding

ROOM = 8 * 2**20
"""Bytes of memory that a plan may keep."""

BAD = 1
"""What the embedding kernel returns for an index that is not in its table; others return nothing."""


class Plan:
    """`run(inputs)` for the shapes that it was made with, by one thread at a time (`free`)."""

    def __init__(
        self, steps: avx512.Tape, inputs: dict[str, Tensor], outputs: list[Any], spec: Any, kept: list[Any]
    ) -> None:
        self.steps, self.inputs, self.outputs, self.spec, self.kept = steps, inputs, outputs, spec, kept
        self.free = threading.Lock()

    def run(self, inputs: Mapping[str, Any]) -> Any:
        for name, own in self.inputs.items():
            own.copy_(inputs[name])
        for function, arguments in self.steps:
            if function(*arguments) is BAD:
                raise IndexError(avx512.OUT_OF_RANGE)
        return tree_unflatten([v.clone() if isinstance(v, Tensor) else v for v in self.outputs], self.spec)


def make_plan(lowered: Lowered, inputs: Mapping[str, Any]) -> Plan | None:
    """None if the graph changes a tensor in place, draws random numbers, or needs more than `ROOM` bytes."""
    own = {name: inputs[name].clone() for name in lowered.captured.inputs}
    given = iter(own.values())
    values: dict[Any, Any] = {}
    varies: set[Any] = set()
    steps: avx512.Tape = []
    room = ROOM
    for node in lowered.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
            varies.add(node)
            continue
        if node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(lowered.module)
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)  # type: ignore[misc]
        if node.op == "output":
            outputs = args[0] if isinstance(args[0], list | tuple) else [args[0]]
            return Plan(steps, own, list(outputs), lowered.captured.outputs, list(values.values()))
        if changes_something(node.target):
            return None
        with avx512.recording() as tape:
            found = values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        sources = [source for source in node.all_input_nodes if source in varies and isinstance(values[source], Tensor)]
        if not sources or not isinstance(found, Tensor):
            continue  # of shapes and constants alone: the same at every replay
        varies.add(node)
        if _is_kernel(node.target):
            steps += tape
        elif not any(_shares(found, values[source]) for source in sources):
            steps.append((_again, (found, node.target, args, kwargs)))
        else:
            continue  # a view
        room -= found.numel() * found.element_size()
        if room < 0:
            return None
    return None


def _again(result: Tensor, function: Callable[..., Tensor], args: tuple, kwargs: dict) -> None:
    result.copy_(function(*args, **kwargs))


def _is_kernel(target: Any) -> bool:
    """Whether all that a call does is on the tape."""
    kernels = (avx512.PackedLinear, avx512.PackedPair, avx512.Norm, avx512.PackedAttention)
    owner = getattr(target, "__self__", None)
    whole = isinstance(owner, Int8Embedding) and avx512.takes(owner.dtype)
    return target in (avx512.attention, avx512.rotary) or isinstance(owner, kernels) or whole


def _shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
