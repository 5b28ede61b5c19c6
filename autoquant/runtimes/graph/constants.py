"""Rewrite: what depends on the model's tensors alone is computed once, such as positions interpolated to an image's size."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.fx import Graph, GraphModule

from autoquant.runtimes.graph.nodes import Node, changes_something, value_of

MOST = 2**23
"""Bytes of a result that is kept: larger ones are computed at every call, as the model does."""


def fold_constants(graph: Graph, module: GraphModule) -> None:
    """Results become attributes of `module`. The model's tensors must not change afterwards; kernels copy them, too."""
    known: dict[Node, Tensor] = {}
    for node in list(graph.nodes):
        value = value_of(module, node) if node.op == "get_attr" else _computed(node, known)
        if value is not None:
            known[node] = value
    for number, (node, value) in enumerate(known.items()):
        if node.op == "get_attr" or all(user in known for user in node.users):
            continue
        name = f"folded_{number}"
        setattr(module, name, value)
        with graph.inserting_before(node):
            new = graph.create_node("get_attr", name)  # `get_attr` would look among registered tensors
        new.meta = node.meta
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in known)
    graph.eliminate_dead_code()


def _computed(node: Node, known: dict[Node, Tensor]) -> Tensor | None:
    if (
        node.op != "call_function"
        or not isinstance(node.target, torch._ops.OpOverload)
        or node.target.namespace != "aten"
    ):
        return None
    inputs = node.all_input_nodes
    if not inputs or any(one not in known for one in inputs) or changes_something(node.target):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)  # type: ignore[misc]
    with torch.inference_mode():
        value = node.target(*args, **kwargs)
    small = isinstance(value, Tensor) and value.numel() * value.element_size() <= MOST
    return value if small else None
