"""A rewritten graph as one Python function of one call a line; constants and kernels are bound by name."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx import Graph, GraphModule
from torch.utils._pytree import tree_unflatten

from autoquant.runtimes.graph.attention import CACHE
from autoquant.runtimes.graph.capture import Captured
from autoquant.runtimes.graph.nodes import Node


def write(graph: Graph, module: GraphModule, captured: Captured) -> Callable[..., Any]:
    """Python source of one call a line, compiled; constants and kernels are bound by name."""
    scope: dict[str, Any] = {"unflatten": tree_unflatten, "spec": captured.outputs}
    last_use: dict[Node, Node] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            last_use[used] = node
    freed: dict[Node, list[str]] = defaultdict(list)
    for used, node in last_use.items():
        if used.op == "call_function":
            freed[node].append(used.name)

    def show(value: Any) -> str:
        if isinstance(value, fx.Node):
            return value.name
        if isinstance(value, list | tuple):
            inner = ", ".join(map(show, value))
            return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
        if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and abs(value) < 1e300):
            return repr(value)
        return bind(value, "constant")

    def bind(value: Any, name: str) -> str:
        name = f"{name}_{len(scope)}"
        scope[name] = value
        return name

    lines, order = [], iter([*captured.inputs, CACHE])
    for node in graph.nodes:
        if node.op == "placeholder":
            lines.append(f"{node.name} = inputs[{next(order)!r}]")
        elif node.op == "get_attr":
            scope[node.name] = operator.attrgetter(str(node.target))(module)
        elif node.op == "call_function":
            arguments = [show(arg) for arg in node.args] + [f"{key}={show(arg)}" for key, arg in node.kwargs.items()]
            lines.append(f"{node.name} = {bind(_fast(node.target), 'call')}({', '.join(arguments)})")
            if node in freed:
                lines.append(f"del {', '.join(freed[node])}")
        elif node.op == "output":
            lines.append(f"return unflatten({show(list(_flat(node.args[0])))}, spec)")
        else:
            raise NotImplementedError(f"{node.op} in a captured graph")
    source = "def run(**inputs):\n    " + "\n    ".join(lines)
    exec(compile(source, "<autoquant graph>", "exec"), scope)
    run = scope["run"]
    run.source = source
    return run


def _fast(target: Any) -> Any:
    """The C++ function behind an operator, without Python's checks around it."""
    return target._op if isinstance(target, torch._ops.OpOverload) else target


def _flat(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]
