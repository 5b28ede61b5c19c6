"""Outputs of a model from its first changed block on: what the blocks before give is known from the float model.

Worth it where few layers are changed. The maps that a search judges quantize nearly all layers: on recorded searches the
blocks that one has in common with any earlier map are none on encoders and 16% on SmolLM2, so those run whole, from graphs.
The one-layer maps of a refinement (`autoquant.search.refine`) have half of the model in common with the float one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.evaluation import device_of
from autoquant.models.layers import get_module
from autoquant.runtimes.graph import decelerated
from autoquant.tasks.base import Batch, Task, to_device

ROOM = 512 * 2**20
"""Bytes of block outputs kept; with more blocks than fit, the last one of every few."""


class _Recording:
    """What the blocks of one base dtype's float model gave.

    Attributes:
        names: blocks in the order in which they run; none where nothing can be replayed.
        finished: layer → blocks that had run when it was first called.
        kept: batch → number of blocks that have run → output of the last of them.
    """

    def __init__(self, names: list[str], batches: int, room: int) -> None:
        self.names, self.room = names, room
        self.finished: dict[str, int] = {}
        self.kept: list[dict[int, Tensor]] = [{} for _ in range(batches)]
        self._ran: list[str] = []
        self._batch = -1

    def begin(self) -> None:
        """The next batch."""
        self._ran, self._batch = [], self._batch + 1

    def called(self, layer: str) -> None:
        self.finished[layer] = min(self.finished.get(layer, len(self.names)), len(self._ran))

    def ran(self, block: str, output: Any) -> None:
        self._ran.append(block)
        count = len(self._ran)
        if not isinstance(output, Tensor) or self._ran != self.names[:count]:
            self.names, self.kept = [], [{} for _ in self.kept]  # gives more than a tensor, or runs in another order
        elif count % self._every(output) == 0:
            self.kept[self._batch][count] = output

    def _every(self, output: Tensor) -> int:
        """Of so many blocks the last one is kept, for all to fit into the room."""
        size = output.numel() * output.element_size() * len(self.names) * len(self.kept)
        return max(1, -(-size // self.room))


@dataclass
class Replay:
    """Runs models on some batches of the search split.

    Attributes:
        plan: rows of each batch.
        layers: names of all layers that a map may change.
        assemble: (layers, base dtype) → a model, whose blocks are the children of its first list of modules.
    """

    task: Task
    plan: Sequence[list[int]]
    layers: Sequence[str]
    assemble: Callable[[dict[str, str], str], nn.Module]
    room: int = ROOM
    _recorded: dict[str, _Recording] = field(default_factory=dict)

    def outputs(self, base: str, layers: Mapping[str, str]) -> Iterator[tuple[list[int], Tensor, Batch]]:
        """(rows, output, batch) of each batch, of the model under a map."""
        changed = [name for name, scheme in layers.items() if scheme != base]
        if base not in self._recorded:
            self._recorded[base] = self._record(base)
        blocks, model = self._recorded[base], self.assemble(dict(layers), base)
        most = min((blocks.finished.get(name, 0) for name in changed), default=len(blocks.names))
        for rows, kept in zip(self.plan, blocks.kept, strict=True):
            known = max((count for count in kept if count <= most), default=0)
            batch = self._batch(model, rows)
            with torch.inference_mode(), _replayed(model, blocks.names[:known], kept.get(known)):
                output = self.task.forward(model, batch)
            yield rows, output, batch

    def _record(self, base: str) -> _Recording:
        model = self.assemble({}, base)
        found = _Recording(_block_names(model, self.layers), len(self.plan), self.room)
        with torch.inference_mode(), decelerated(model), ExitStack() as hooks:
            for name in self.layers:
                called = functools.partial(lambda layer, *_: found.called(layer), name)
                hooks.callback(get_module(model, name).register_forward_pre_hook(called).remove)
            for name in found.names:
                ran = functools.partial(lambda block, _, __, output: found.ran(block, output), name)
                hooks.callback(get_module(model, name).register_forward_hook(ran).remove)
            for rows in self.plan:
                if found.names:
                    found.begin()
                    self.task.forward(model, self._batch(model, rows))
        return found

    def _batch(self, model: nn.Module, rows: list[int]) -> Batch:
        return to_device(self.task.batch("search", rows), device_of(model))


def _block_names(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """The children of the first list of two modules or more that have layers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            children = [f"{name}.{child}" for child, _ in module.named_children()]
            if all(any(layer.startswith(f"{child}.") for layer in layers) for child in children):
                return children
    return []


@contextmanager
def _replayed(model: nn.Module, names: Sequence[str], output: Tensor | None) -> Iterator[None]:
    """These blocks give `output` without running; the others run as they are."""
    if not names:
        yield
        return
    with decelerated(model), ExitStack() as stack:
        for name in names:
            stack.enter_context(_forward(get_module(model, name), lambda *args, **kwargs: output))
        yield


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before  # type: ignore[method-assign]
