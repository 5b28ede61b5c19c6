"""Capture a model's forward pass as an ATen graph in which every layer that a scheme can change is one opaque node.

The graph holds for every layer map and for every batch size and length: which module a node stands for is looked up when
the graph is lowered.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils._pytree import TreeSpec
from transformers.pytorch_utils import Conv1D

from autoquant.models.layers import why_left_alone
from autoquant.runtimes.graph import cache
from autoquant.runtimes.operators import convolution, layer, window
from autoquant.runtimes.portable import PortableLayer
from autoquant.runtimes.torch_runtime import FloatLayer, Int8Conv2d, Int8Embedding, Int8Linear


@dataclass(frozen=True)
class Captured:
    """A graph and how its inputs and outputs are packed: placeholders are the tensors of `inputs`, in that order.

    Of a call with a cache, `cache.NAME` among the inputs stands for how long the cache is.
    """

    module: fx.GraphModule
    inputs: dict[str, tuple[Size, ...]]
    outputs: TreeSpec

    def fits(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the graph holds for tensors of these shapes: what it took for constants or for equal must be so."""
        sizes: dict[str, int] = {}
        for name, axes in self.inputs.items():
            for size, axis in zip(inputs[name].shape, axes, strict=True):
                if isinstance(axis, int):
                    if size != axis:
                        return False
                elif not axis[1] <= size <= axis[2] or sizes.setdefault(axis[0], size) != size:
                    return False
        return True


Size = int | tuple[str, int, int]
"""A constant, or (name, least, most) of one that varies."""


def capture(model: nn.Module, inputs: Mapping[str, Any], decompositions: Any = None) -> Captured:
    """The graph of `model(**inputs)` for any batch size and, of token ids, masks and a cache, any length.

    Args:
        inputs: tensors (batch, …), plain values, which the graph is specialised to, and a cache of keys and values.
        decompositions: operator → what it is written as, where the graph's reader does not know all of ATen.

    Raises:
        Exception: whatever torch.export says of a forward pass that depends on its data.
    """
    program, found = record(model, inputs)
    with quiet(), torch.no_grad():
        if decompositions is not None:
            program = program.run_decompositions(decompositions)
        module = program.module(check_guards=False)
    return Captured(module, found, program.call_spec.out_spec)


def record(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[ExportedProgram, dict[str, tuple[Size, ...]]]:
    """What `capture` makes its graph of, for engines that read such programs, and what it assumes of its inputs, in order."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in inputs.items() if name not in tensors and name != cache.NAME}
    axes = {name: value.dim() if value.dim() <= 2 else 1 for name, value in tensors.items()}
    dynamic = {name: dict.fromkeys(range(count), Dim.AUTO) for name, count in axes.items()}
    layers = None
    if cache.NAME in inputs:
        layers = model.config.get_text_config(decoder=True).num_hidden_layers  # type: ignore[union-attr, operator]
        if cache.length_of(inputs[cache.NAME]):
            tensors[cache.NAME] = inputs[cache.NAME].layers[0].keys
            dynamic[cache.NAME] = {0: Dim.AUTO, 2: Dim.AUTO}
    example = {name: _several_rows(value) for name, value in tensors.items()}
    call = _Call(model, plain, layers)
    with _marked(model), quiet(), torch.no_grad():
        program = export(call, (example,), dynamic_shapes={"tensors": dynamic}, strict=False)
    return program, _assumed(program, tensors)


class _Call(nn.Module):
    """`model(**tensors, **plain)` as a function of the tensors; `layers` of a cache, or None for a call without one."""

    def __init__(self, model: nn.Module, plain: dict[str, Any], layers: int | None) -> None:
        super().__init__()
        self.model, self.plain, self.layers = model, plain, layers

    def forward(self, tensors: dict[str, Tensor]) -> Any:
        if self.layers is None:
            return self.model(**tensors, **self.plain)
        given = {**self.plain, **tensors, cache.NAME: cache.traced(tensors.get(cache.NAME), self.layers)}
        out = self.model(**cache.renamed(given, cache.NAME, cache.name_of(self.model.forward)))
        own = cache.returned(type(out))
        return type(out)(**{name: value for name, value in out.items() if name != own})


def _assumed(program: ExportedProgram, names: Iterable[str]) -> dict[str, tuple[Size, ...]]:
    """What torch.export assumed of each input's shape. A least size of 2 is a convention of its, and no assumption."""
    found: dict[str, tuple[Size, ...]] = {}
    of_inputs = set(program.graph_signature.user_inputs)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in of_inputs]
    for name, node in zip(names, placeholders, strict=True):
        axes: list[Size] = []
        for size in node.meta["val"].shape:
            if isinstance(size, int):
                axes.append(size)
                continue
            symbol = size.node.expr
            bounds: Any = program.range_constraints[symbol]  # KeyError: an expression of other sizes; not captured then
            low, high = int(bounds.lower), int(bounds.upper) if bounds.upper.is_Integer else 2**62
            axes.append((str(symbol), 1 if low <= 2 else low, high))
        found[name] = tuple(axes)
    return found


def _several_rows(value: Tensor) -> Tensor:
    """Rows repeated, for a size of 1 would be taken for a constant; a number that no length is likely to be."""
    return value.repeat_interleave(-(-5 // value.shape[0]), 0)[:5]


@contextlib.contextmanager
def _marked(model: nn.Module) -> Iterator[None]:
    """While open, every layer's forward is its opaque node."""
    marked = []
    forward = model.__dict__.pop("forward", None)  # an accelerated model is captured as it was written
    for name, module in model.named_modules():
        node = node_of(name, module)
        if node is not None:
            module.forward = node  # type: ignore[method-assign]
            marked.append(module)
    try:
        yield
    finally:
        for module in marked:
            del module.forward
        if forward is not None:
            model.forward = forward  # type: ignore[method-assign]


@dataclass(frozen=True)
class Opaque:
    """The node that stands for a layer: its module's forward, while the model is captured.

    Attributes:
        dtype: of its output; None: of its input.
        window: stride and reach of a convolution, see `operators.convolution`.
    """

    name: str
    width: int
    dtype: torch.dtype | None = None
    window: tuple[list[int], list[int]] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        dtype = self.dtype or x.dtype
        if self.window is None:
            return layer(x, self.name, self.width, dtype)
        return convolution(x, self.name, self.width, *self.window, dtype)


def node_of(name: str, module: nn.Module) -> Opaque | None:
    """What stands for this module in a captured graph; None: it is captured as it is written."""
    if isinstance(module, PortableLayer):
        t = module.tensors
        width = t.layer.shape[1 if t.layer.kind == "embedding" else 0]
        return Opaque(name, width, window=t.window) if t.layer.kind == "conv2d" else Opaque(name, width, module.dtype)
    if isinstance(module, Int8Conv2d):
        return Opaque(name, module.linear.out_features, window=window(module.kernel_size, **module.geometry))
    if isinstance(module, FloatLayer):
        width = module.weight.shape[1 if module.kind == "embedding" else 0]
        reach = window(module.weight.shape[2:], **module.geometry) if module.kind == "conv2d" else None
        return Opaque(name, width, module.dtype, reach)
    if isinstance(module, nn.Conv2d) and why_left_alone(module) is None:
        return Opaque(
            name, module.out_channels,
            window=window(module.kernel_size, module.stride, module.padding, module.dilation),
        )  # fmt: skip
    if isinstance(module, Conv1D):
        return Opaque(name, module.nf)
    if isinstance(module, Int8Linear | nn.Linear):
        return Opaque(name, module.out_features)
    if isinstance(module, Int8Embedding):
        return Opaque(name, module.embedding_dim, module.dtype)
    if isinstance(module, nn.Embedding):
        return Opaque(name, module.embedding_dim, module.weight.dtype)
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch.export and what reads its programs warn of much that no user can act on."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
