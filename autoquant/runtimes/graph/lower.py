"""Lower a captured graph to kernel calls: layers become their modules' kernels, and what surrounds them is fused.

Each rewrite is one function below, with what it looks for in its first line. The result is one Python function without
branches, in which every line is a call and every tensor is freed after its last use.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Graph, GraphModule
from torch.utils._pytree import tree_unflatten

from autoquant.models.layers import get_module
from autoquant.runtimes.graph import cache
from autoquant.runtimes.graph.capture import Captured
from autoquant.runtimes.native import avx512
from autoquant.runtimes.native.avx512 import PackedLinear
from autoquant.runtimes.operators import NODES
from autoquant.runtimes.torch_runtime import Int8Linear

aten = torch.ops.aten
Node = Any
"""An `fx.Node`, whose arguments have types that no checker can follow."""


@dataclass(frozen=True)
class Lowered:
    """A graph of kernel calls, and as a function of its tensors, by name, that returns what the model returns."""

    captured: Captured
    module: GraphModule
    graph: Graph
    run: Callable[..., Any]


def lower(captured: Captured, model: nn.Module) -> Lowered:
    module = copy.copy(captured.module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own copying
        module.graph = copy.deepcopy(captured.module.graph)
    graph = module.graph
    _drop_idle(graph)
    layers = _layers(graph, model)
    _caches(graph)
    _norms(graph, module)
    _rotary(graph)
    _attention(graph)
    _gated(layers, graph)
    _join(layers, graph, model)
    _packed_attention(graph)
    _epilogues(graph, module)
    graph.eliminate_dead_code()
    return Lowered(captured, module, graph, _assemble(graph, module, captured))


# ---- rewrites ----


def _drop_idle(graph: Graph) -> None:
    """Checks, dropout, and casts to what a tensor already is."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = str(node.target)
        if name.startswith("aten._assert"):
            graph.erase_node(node)
        elif name.startswith(("aten.dropout", "aten.alias", "aten.detach", "aten.lift_fresh")) or (
            name.startswith(("aten.to.", "aten._to_copy", "aten.type_as")) and _same(node, node.args[0])
        ):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _layers(graph: Graph, model: nn.Module) -> list[Node]:
    """autoquant.layer → the kernel of the module; returns the nodes of int8 linear layers."""
    found = []
    for node in list(graph.nodes):
        if node.target not in NODES:
            continue
        layer = get_module(model, node.args[1])
        if isinstance(layer, Int8Linear) and _is_float(node) and layer.packed is not None:
            found.append(_replace(graph, node, layer.packed.__call__, (node.args[0],)))
        else:
            _replace(graph, node, layer.forward, (node.args[0],))
    return found


def _caches(graph: Graph) -> None:
    """autoquant.append → append to the cache that the call was given, a new input behind the others."""
    found = [node for node in graph.nodes if node.target is torch.ops.autoquant.append.default]
    if not found:
        return
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        given = graph.placeholder(CACHE)
    for node in found:
        new, _, layer, part = node.args
        _replace(graph, node, cache.append, (given, new, layer, part))


CACHE = "cache"
"""The cache among the arguments of a lowered graph, in which `cache.NAME` is a tensor as long as it is."""


def _rotary(graph: Graph) -> None:
    """x · cos + cat(-x[half:], x[:half]) · sin."""
    for node in list(graph.nodes):
        if not _calls(node, aten.add.Tensor) or node.kwargs or len(_shape(node)) != 4 or not _is_float(node):
            continue
        muls = [arg for arg in node.args if _calls(arg, aten.mul.Tensor)]
        if len(muls) != 2:
            continue
        for plain, turned in (muls, muls[::-1]):
            cos_and_x, x = plain.args, _half_turned(turned.args[0])
            if x is None or x not in cos_and_x:
                continue
            cos, sin = cos_and_x[1 - cos_and_x.index(x)], turned.args[1]
            shape = _shape(cos)
            if _same(x, node) and _same(cos, sin) and len(shape) == 4 and shape[1] == 1 and shape[3] == _shape(x)[3]:
                _replace(graph, node, avx512.rotary, (x, cos, sin))
                break


def _half_turned(node: Any) -> Any:
    """x of cat(-x[half:], x[:half]) along the last dimension."""
    if not _calls(node, aten.cat.default) or node.args[1:] not in ((-1,), (3,)) or len(node.args[0]) != 2:
        return None
    neg, low = node.args[0]
    if (
        not _calls(neg, aten.neg.default)
        or not _calls(low, aten.slice.Tensor)
        or not _calls(neg.args[0], aten.slice.Tensor)
    ):
        return None
    high, x = neg.args[0], low.args[0]
    width = _shape(x)[-1]
    if high.args[0] is not x or not isinstance(width, int) or width % 2:
        return None
    starts, ends = (high.args[1:3], low.args[1:]), high.args[3]
    return x if starts == ((3, width // 2), (3, 0, width // 2)) and ends >= width else None


def _norms(graph: Graph, module: GraphModule) -> None:
    """layer_norm(x, [width], weight, bias, eps), and x · rsqrt(mean(x²) + eps) · weight."""
    for node in list(graph.nodes):
        if node.target is aten.layer_norm.default and _is_float(node):
            x, shape, *rest = node.args
            weight, bias = (_value(module, arg) for arg in [*rest, None, None][:2])
            eps = rest[2] if len(rest) > 2 else 1e-5
            if len(shape) == 1 and weight is not None:
                _replace(graph, node, avx512.Norm(weight, bias, eps, rms=False).__call__, (x,))
        elif node.target is aten.rsqrt.default and (match := _rms(node)) is not None:
            x, last, weight_node, eps = match
            weight = _value(module, weight_node)
            if weight is not None and _same(last, x):
                _replace(graph, last, avx512.Norm(weight, None, eps, rms=True).__call__, (x,), before=last)


def _rms(node: Node) -> tuple[Any, Any, Any, float] | None:
    """(x, the last node, the weight's node, eps) of the RMSNorm that this rsqrt is in."""
    add = node.args[0]
    if not _calls(add, aten.add.Tensor) or not isinstance(add.args[1], float):
        return None
    mean = add.args[0]
    if (
        not _calls(mean, aten.mean.dim)
        or list(mean.args[1]) != [-1]
        or not _calls(mean.args[0], aten.pow.Tensor_Scalar)
    ):
        return None
    wide = mean.args[0].args[0]
    scaled = next((user for user in node.users if _calls(user, aten.mul.Tensor) and wide in user.args), None)
    if scaled is None or mean.args[0].args[1] != 2 or len(scaled.users) != 1:
        return None
    last = next(iter(scaled.users))
    if str(last.target).startswith("aten.to."):
        scaled, last = last, next(iter(last.users))
    if not _calls(last, aten.mul.Tensor):
        return None
    weight = next(arg for arg in last.args if arg is not scaled)
    x = wide.args[0] if str(wide.target).startswith("aten.to.") else wide
    return x, last, weight, add.args[1]


def _attention(graph: Graph) -> None:
    """scaled_dot_product_attention without dropout, with keys repeated for groups of query heads or not."""
    for node in list(graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default or not _is_float(node):
            continue
        q, k, v, mask, dropout, causal = (*node.args, *(None, 0.0, False)[len(node.args) - 3 :])  # type: ignore[misc]
        if dropout or any(len(_shape(t)) != 4 for t in (q, k, v)) or (mask is not None and len(_shape(mask)) != 4):
            continue
        options = {"mask": mask, "causal": causal, "scale": node.kwargs.get("scale")}
        _replace(graph, node, avx512.attention, (q, _unrepeated(k), _unrepeated(v)), options)


def _unrepeated(node: Node) -> Node:
    """x of x[:, :, None].expand(…).reshape(…), which repeats each key head."""
    chain = node
    steps: tuple[tuple[Any, ...], ...] = ((aten.reshape.default, aten.view.default), (aten.expand.default,))
    for targets in (*steps, (aten.unsqueeze.default,)):
        while _calls(chain, aten.slice.Tensor):
            chain = chain.args[0]
        if not any(_calls(chain, target) for target in targets):
            return node
        if targets[0] is aten.unsqueeze.default and chain.args[1] != 2:
            return node
        chain = chain.args[0]
    while _calls(chain, aten.slice.Tensor) and _same(chain, chain.args[0]):
        chain = chain.args[0]
    return chain


def _gated(layers: list[Node], graph: Graph) -> None:
    """silu(gate(x)) · up(x) of two int8 layers: one product, gated while it is in the cache."""
    silus: list[Any] = [node for node in graph.nodes if node.target is aten.silu.default]
    for silu in silus:
        gate: Any = silu.args[0]
        mul = _only_user(silu)
        if gate not in layers or len(gate.users) != 1 or not _calls(mul, aten.mul.Tensor):
            continue
        up: Any = next((arg for arg in mul.args if arg is not silu), None)
        if up not in layers or len(up.users) != 1 or up.args[0] is not gate.args[0]:
            continue
        packed = [_packed(gate), _packed(up)]
        if packed[0].outputs == packed[1].outputs and avx512.can_join(packed):
            joined = _joined(packed).with_activation("swiglu")
            _replace(graph, mul, joined.__call__, (gate.args[0],))
            for node in (gate, up):
                layers.remove(node)


def _join(layers: list[Node], graph: Graph, model: nn.Module) -> None:
    """Int8 layers of the same input: one product, of which each gets its columns."""
    by_input: dict[Any, list[Node]] = defaultdict(list)
    for node in layers:
        by_input[node.args[0]].append(node)
    for x, nodes in by_input.items():
        packed = [_packed(node) for node in nodes]
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


def _packed_attention(graph: Graph) -> None:
    """attention of q, k, v that are columns of one product, split into heads, and its heads put side by side again.

    With a cache: of q and k that are rotated, and k and v that are put behind it.
    """
    for node in [node for node in graph.nodes if node.target is avx512.attention]:
        turned = _rotated_and_cached(node)
        found = [_heads_of(arg) for arg in node.args] if turned is None else turned.heads
        parts = [part for part in found if part]
        last = _side_by_side(node)
        if last is None or len(parts) != 3 or len({part[0] for part in parts}) != 1:
            continue
        geometry = (
            tuple(start for _, start, _ in parts), tuple(_shape(arg)[1] for arg in node.args), parts[0][2],
            node.kwargs["causal"], node.kwargs["scale"],
        )  # fmt: skip
        product, mask = parts[0][0], node.kwargs["mask"]
        if turned is None:
            _replace(graph, last, avx512.PackedAttention(*geometry).__call__, (product,), {"mask": mask})
        else:
            kernel = avx512.CachedAttention(*geometry)
            _replace(
                graph, last, cache.attend, (turned.cache, turned.layer, kernel, product, turned.cos, turned.sin, mask)
            )


@dataclass(frozen=True)
class _Turned:
    heads: list[tuple[Node, int, int] | None]
    cache: Node
    layer: int
    cos: Node
    sin: Node


def _rotated_and_cached(node: Node) -> _Turned | None:
    """attention(rotary(q), append(cache, rotary(k)), append(cache, v))."""
    q, k, v = node.args
    if not (_calls(q, avx512.rotary) and _calls(k, cache.append) and _calls(v, cache.append)):
        return None
    (given, key, layer, _), value = k.args, v.args[1]
    if (
        not _calls(key, avx512.rotary)
        or q.args[1:] != key.args[1:]
        or any(len(part.users) != 1 for part in (q, k, v, key))
    ):
        return None
    return _Turned([_heads_of(part) for part in (q.args[0], key.args[0], value)], given, layer, *q.args[1:])


def _side_by_side(node: Node) -> Node | None:
    """The node (batch, length, heads · width) that this attention's output becomes."""
    last = node
    user = _only_user(last)
    if user is not None and user.target in RESHAPES and _same(user, last):
        last = user
    for targets in ((aten.transpose.int,), RESHAPES):
        user = _only_user(last)
        last = user if user is not None and user.target in targets else last
    return last if last.target in RESHAPES and len(_shape(last)) == 3 else None


RESHAPES = (
    aten.reshape.default,
    aten.view.default,
    aten.contiguous.default,
    aten.clone.default,
    aten._unsafe_view.default,
)


def _heads_of(node: Node) -> tuple[Node, int, int] | None:
    """(the product, the first column, a head's width) of transpose(view(narrow(product), [.., .., heads, width]), 1, 2)."""
    if not _calls(node, aten.transpose.int) or list(node.args[1:]) != [1, 2]:
        return None
    view = node.args[0]
    if not any(_calls(view, target) for target in (aten.view.default, aten.reshape.default)):
        return None
    narrow = view.args[0]
    if not _calls(narrow, torch.narrow) or len(_shape(view)) != 4 or len(_shape(narrow)) != 3:
        return None
    width = _shape(view)[-1]
    return (narrow.args[0], narrow.args[2], width) if isinstance(width, int) else None


ACTIVATIONS: dict[Any, Callable[[Node], str]] = {
    aten.gelu.default: lambda node: "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu",
    aten.silu.default: lambda node: "silu",
    aten.relu.default: lambda node: "relu",
}


def _epilogues(graph: Graph, module: GraphModule) -> None:
    """act(layer(x)), then layer(x) + residual: done on the way to memory."""
    for node in list(graph.nodes):
        if not isinstance(_packed(node), PackedLinear):
            continue
        user = _only_user(node)
        if user is not None and user.target in ACTIVATIONS and _packed(node).act is None:
            packed = _packed(node).with_activation(ACTIVATIONS[user.target](user))
            node = _replace(graph, user, packed.__call__, node.args)
            user = _only_user(node)
        if _packed(node).act is None and _calls(user, aten.mul.Tensor):  # LayerScale
            other = next((arg for arg in user.args if arg is not node), None)
            gamma = _value(module, other)
            if gamma is not None and gamma.dim() == 1 and gamma.numel() == _packed(node).outputs:
                node = _replace(graph, user, _packed(node).scaled(gamma).__call__, node.args)
                user = _only_user(node)
        if _calls(user, aten.add.Tensor) and not user.kwargs and _packed(node).act != "swiglu":
            residual = next((arg for arg in user.args if arg is not node), None)
            if isinstance(residual, fx.Node) and _same(residual, node) and _same(user, node):
                _replace(graph, user, _packed(node).__call__, (*node.args, residual))


# ---- helpers ----


def _replace(
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


def _packed(node: Any) -> Any:
    return getattr(node.target, "__self__", None) if isinstance(node, fx.Node) and node.op == "call_function" else None


def _calls(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def _only_user(node: Node) -> Any:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _meta(node: Any) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _shape(node: Any) -> tuple:
    value = _meta(node)
    return () if value is None else tuple(value.shape)


def _is_float(node: Node) -> bool:
    value = _meta(node)
    return value is not None and value.dtype in (torch.float32, torch.bfloat16)


def _same(a: Any, b: Any) -> bool:
    """Whether two nodes have one dtype and one shape, whatever the batch and the length."""
    left, right = _meta(a), _meta(b)
    if left is None or right is None or left.dtype is not right.dtype or left.dim() != right.dim():
        return False
    return all(x == y if isinstance(x, int) and isinstance(y, int) else str(x) == str(y)
               for x, y in zip(left.shape, right.shape, strict=True))  # fmt: skip


def _value(module: GraphModule, node: Any) -> Tensor | None:
    """The tensor of a get_attr node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found = operator.attrgetter(str(node.target))(module)
    return found.detach() if isinstance(found, Tensor) else None


# ---- the function ----


def _assemble(graph: Graph, module: GraphModule, captured: Captured) -> Callable[..., Any]:
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
