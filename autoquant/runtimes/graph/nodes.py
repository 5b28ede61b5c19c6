"""What rewrites ask of a node, and how they replace one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Graph, GraphModule

from autoquant.runtimes.native import avx512

Node = Any
"""An `fx.Node`, whose arguments have types that no checker can follow."""


def replace(
    graph: Graph,
    node: Node,
    target: Callable[..., Any],
    args: tuple,
    kwargs: dict | None = None,
    before: Node | None = None,
) -> Node:
    with graph.inserting_before(before or node):
        new = graph.call_function(target, args, kwargs)
    new.meta = node.meta
    node.replace_all_uses_with(new)
    dead = [node]  # and what only it needed
    while dead:
        last = dead.pop()
        if not last.users and last.op == "call_function" and not last._erased:
            dead += last.all_input_nodes
            graph.erase_node(last)
    return new


def packed_of(node: Any) -> Any:
    return getattr(node.target, "__self__", None) if isinstance(node, fx.Node) and node.op == "call_function" else None


def calls(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def only_user(node: Node) -> Any:
    return next(iter(node.users)) if len(node.users) == 1 else None


@dataclass(frozen=True)
class Kind:
    """What a rewrite may know of a tensor: sizes that vary are expressions, which are equal if they are written alike."""

    dtype: torch.dtype
    shape: tuple[Any, ...]


def kind_of(node: Any) -> Kind | None:
    """Of a node whose value is a tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if isinstance(value, Tensor):
        return Kind(value.dtype, tuple(value.shape))
    return value if isinstance(value, Kind) else None


def shape_of(node: Any) -> tuple:
    kind = kind_of(node)
    return () if kind is None else kind.shape


def dtype_of(node: Any) -> torch.dtype | None:
    kind = kind_of(node)
    return None if kind is None else kind.dtype


def is_float(node: Node) -> bool:
    """Whether the kernels take it."""
    dtype = dtype_of(node)
    return dtype is not None and avx512.takes(dtype)


def same(a: Any, b: Any) -> bool:
    """Whether two nodes have one dtype and one shape, whatever the batch and the length."""
    left, right = kind_of(a), kind_of(b)
    if left is None or right is None or left.dtype is not right.dtype or len(left.shape) != len(right.shape):
        return False
    return all(x == y if isinstance(x, int) and isinstance(y, int) else str(x) == str(y)
               for x, y in zip(left.shape, right.shape, strict=True))  # fmt: skip


def value_of(module: GraphModule, node: Any) -> Tensor | None:
    """The tensor of a get_attr node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found = operator.attrgetter(str(node.target))(module)
    return found.detach() if isinstance(found, Tensor) else None


def changes_something(target: Any) -> bool:
    """Whether a call of this operator changes a tensor in place, or draws random numbers."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags
