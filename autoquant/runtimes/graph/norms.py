"""Rewrites of what is neither a layer nor attention: idle and repeated operations, and normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule

from autoquant.runtimes.graph.nodes import Node, calls, changes_something, is_float, replace, same, value_of
from autoquant.runtimes.native import avx512

aten = torch.ops.aten


def drop_idle(graph: Graph) -> None:
    """Checks, dropout, and casts to what a tensor already is."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = str(node.target)
        if name.startswith("aten._assert"):
            graph.erase_node(node)
        elif name.startswith(("aten.dropout", "aten.alias", "aten.detach", "aten.lift_fresh")) or (
            name.startswith(("aten.to.", "aten._to_copy", "aten.type_as")) and same(node, node.args[0])
        ):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def merge_twins(graph: Graph) -> None:
    """The same operation on the same inputs, once: every layer of a language model asks for the same cosines.

    For a graph that is lowered: rewrites look at how often a node is used.
    """
    known: dict[str, Node] = {}
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload) or changes_something(node.target):
            continue
        key = repr((node.target, node.args, node.kwargs))  # nodes are written as their names, which are unique
        twin = known.setdefault(key, node)
        if twin is not node:
            node.replace_all_uses_with(twin)
            graph.erase_node(node)


def fuse_norms(graph: Graph, module: GraphModule) -> None:
    """layer_norm(x, [width], weight, bias, eps), and x · rsqrt(mean(x²) + eps) · weight."""
    for node in list(graph.nodes):
        if node.target is aten.layer_norm.default and is_float(node):
            x, shape, *rest = node.args
            weight, bias = (value_of(module, arg) for arg in [*rest, None, None][:2])
            eps = rest[2] if len(rest) > 2 else 1e-5
            if len(shape) == 1 and weight is not None and same(node, x):
                replace(graph, node, avx512.Norm(weight, bias, eps, rms=False).__call__, (x,))
        elif node.target is aten.rsqrt.default and (match := _rms(node)) is not None:
            x, last, weight_node, eps = match
            weight = value_of(module, weight_node)
            if weight is not None and same(last, x) and is_float(x):
                replace(graph, last, avx512.Norm(weight, None, eps, rms=True).__call__, (x,), before=last)


def _rms(node: Node) -> tuple[Any, Any, Any, float] | None:
    """(x, the last node, the weight's node, eps) of the RMSNorm that this rsqrt is in."""
    add = node.args[0]
    if not calls(add, aten.add.Tensor) or not isinstance(add.args[1], float):
        return None
    mean = add.args[0]
    if not calls(mean, aten.mean.dim) or list(mean.args[1]) != [-1] or not calls(mean.args[0], aten.pow.Tensor_Scalar):
        return None
    wide = mean.args[0].args[0]
    scaled = next((user for user in node.users if calls(user, aten.mul.Tensor) and wide in user.args), None)
    if scaled is None or mean.args[0].args[1] != 2 or len(scaled.users) != 1:
        return None
    last = next(iter(scaled.users))
    if str(last.target).startswith("aten.to."):
        scaled, last = last, next(iter(last.users))
    if not calls(last, aten.mul.Tensor):
        return None
    weight = next(arg for arg in last.args if arg is not scaled)
    x = wide.args[0] if str(wide.target).startswith("aten.to.") else wide
    return x, last, weight, add.args[1]
