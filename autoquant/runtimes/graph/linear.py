"""Rewrites around linear layers: a layer becomes its kernel, and what follows it is done on the way to memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx import Graph, GraphModule

from autoquant.models.layers import get_module
from autoquant.runtimes.graph.nodes import Node, calls, is_float, only_user, packed_of, replace, same, value_of
from autoquant.runtimes.native import avx512
from autoquant.runtimes.native.avx512 import PackedLinear, PackedPair
from autoquant.runtimes.operators import NODES
from autoquant.runtimes.torch_runtime import Int8Linear

aten = torch.ops.aten


def lower_layers(graph: Graph, model: nn.Module) -> list[Node]:
    """autoquant.layer → the kernel of the module; returns the nodes of int8 linear layers."""
    found = []
    for node in list(graph.nodes):
        if node.target not in NODES:
            continue
        layer = get_module(model, node.args[1])
        if isinstance(layer, Int8Linear) and is_float(node) and layer.packed is not None:
            found.append(replace(graph, node, layer.packed.__call__, (node.args[0],)))
        else:
            replace(graph, node, layer.forward, (node.args[0],))
    return found


def fuse_gated(layers: list[Node], graph: Graph) -> None:
    """silu(gate(x)) · up(x) of two int8 layers: one product, gated while it is in the cache."""
    silus: list[Any] = [node for node in graph.nodes if node.target is aten.silu.default]
    for silu in silus:
        gate: Any = silu.args[0]
        mul = only_user(silu)
        if gate not in layers or len(gate.users) != 1 or not calls(mul, aten.mul.Tensor):
            continue
        up: Any = next((arg for arg in mul.args if arg is not silu), None)
        if up not in layers or len(up.users) != 1 or up.args[0] is not gate.args[0]:
            continue
        packed = [packed_of(gate), packed_of(up)]
        if packed[0].outputs == packed[1].outputs and avx512.can_join(packed):
            joined = _joined(packed).with_activation("swiglu")
            replace(graph, mul, joined.__call__, (gate.args[0],))
            for node in (gate, up):
                layers.remove(node)


def join_layers(layers: list[Node], graph: Graph, model: nn.Module) -> None:
    """Int8 layers of the same input: one product, of which each gets its columns."""
    by_input: dict[Any, list[Node]] = defaultdict(list)
    for node in layers:
        by_input[node.args[0]].append(node)
    for x, nodes in by_input.items():
        packed = [packed_of(node) for node in nodes]
        if len(nodes) < 2 or not avx512.can_join(packed):
            continue
        with graph.inserting_before(nodes[0]):
            whole = graph.call_function(_joined(packed).__call__, (x,))
            place = 0
            for node, part in zip(nodes, packed, strict=True):
                with graph.inserting_before(node):
                    own = graph.call_function(torch.narrow, (whole, -1, place, part.outputs))
                own.meta = node.meta
                node.replace_all_uses_with(own)
                graph.erase_node(node)
                layers.remove(node)
                place += part.outputs


def _joined(parts: list[PackedLinear]) -> PackedLinear:
    """The parts in one memory, which they then are views of: a layer map that joins them anew finds it as it is."""
    first = parts[0]
    place, joined = first.weight.data_ptr(), True
    for part in parts:
        joined &= part.weight.data_ptr() == place
        place += part.weight.numel()
    if not joined or first.family is None or first.family.outputs != sum(p.outputs for p in parts):
        return avx512.join(parts)
    return first.family


ACTIVATIONS: dict[Any, Callable[[Node], str]] = {
    aten.gelu.default: lambda node: "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu",
    aten.silu.default: lambda node: "silu",
    aten.relu.default: lambda node: "relu",
}


def fuse_epilogues(graph: Graph, module: GraphModule) -> None:
    """act(layer(x)), then layer(x) + residual: done on the way to memory."""
    for node in list(graph.nodes):
        if not isinstance(packed_of(node), PackedLinear):
            continue
        user = only_user(node)
        if user is not None and user.target in ACTIVATIONS and packed_of(node).act is None:
            packed = packed_of(node).with_activation(ACTIVATIONS[user.target](user))
            node = replace(graph, user, packed.__call__, node.args)
            user = only_user(node)
        if packed_of(node).act is None and calls(user, aten.mul.Tensor):  # LayerScale
            other = next((arg for arg in user.args if arg is not node), None)
            gamma = value_of(module, other)
            if gamma is not None and gamma.dim() == 1 and gamma.numel() == packed_of(node).outputs:
                node = replace(graph, user, packed_of(node).scaled(gamma).__call__, node.args)
                user = only_user(node)
        if calls(user, aten.add.Tensor) and not user.kwargs and packed_of(node).act != "swiglu":
            residual = next((arg for arg in user.args if arg is not node), None)
            if isinstance(residual, fx.Node) and same(residual, node) and same(user, node):
                replace(graph, user, packed_of(node).__call__, (*node.args, residual))


def fuse_pairs(graph: Graph) -> None:
    """A layer of which only another layer reads: both at once."""
    for node in list(graph.nodes):
        first, user = packed_of(node), only_user(node)
        second = packed_of(user)
        if not isinstance(first, PackedLinear) or not isinstance(second, PackedLinear) or len(node.args) > 1:
            continue
        if user.args[0] is node and user.args[1:] != (node,) and PackedPair.fits(first, second):
            replace(graph, user, PackedPair(first, second).__call__, (node.args[0], *user.args[1:]))
