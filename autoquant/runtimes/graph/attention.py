"""Rewrites around attention: rotary positions, the cache of keys and values, and heads that are columns of a product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph

from autoquant.runtimes.graph import cache
from autoquant.runtimes.graph.nodes import Node, calls, dtype_of, is_float, only_user, replace, same, shape_of
from autoquant.runtimes.native import avx512

aten = torch.ops.aten
CACHE = "cache"
"""The cache among the arguments of a lowered graph, in which `cache.NAME` is a tensor as long as it is."""

RESHAPES = (
    aten.reshape.default,
    aten.view.default,
    aten.contiguous.default,
    aten.clone.default,
    aten._unsafe_view.default,
)


def lower_caches(graph: Graph) -> None:
    """autoquant.append → append to the cache that the call was given, a new input behind the others."""
    found = [node for node in graph.nodes if node.target is torch.ops.autoquant.append.default]
    if not found:
        return
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        given = graph.placeholder(CACHE)
    for node in found:
        new, _, layer, part = node.args
        replace(graph, node, cache.append, (given, new, layer, part))


def fuse_rotary(graph: Graph) -> None:
    """x · cos + cat(-x[half:], x[:half]) · sin."""
    for node in list(graph.nodes):
        if not calls(node, aten.add.Tensor) or node.kwargs or len(shape_of(node)) != 4 or not is_float(node):
            continue
        muls = [arg for arg in node.args if calls(arg, aten.mul.Tensor)]
        if len(muls) != 2:
            continue
        for plain, turned in (muls, muls[::-1]):
            cos_and_x, x = plain.args, _half_turned(turned.args[0])
            if x is None or x not in cos_and_x:
                continue
            cos, sin = cos_and_x[1 - cos_and_x.index(x)], turned.args[1]
            shape = shape_of(cos)
            alike = same(x, node) and same(cos, sin) and dtype_of(cos) is dtype_of(x)
            if alike and len(shape) == 4 and shape[1] == 1 and shape[3] == shape_of(x)[3]:
                replace(graph, node, avx512.rotary, (x, cos, sin))
                break


def _half_turned(node: Any) -> Any:
    """x of cat(-x[half:], x[:half]) along the last dimension."""
    if not calls(node, aten.cat.default) or node.args[1:] not in ((-1,), (3,)) or len(node.args[0]) != 2:
        return None
    neg, low = node.args[0]
    if (
        not calls(neg, aten.neg.default)
        or not calls(low, aten.slice.Tensor)
        or not calls(neg.args[0], aten.slice.Tensor)
    ):
        return None
    high, x = neg.args[0], low.args[0]
    width = shape_of(x)[-1]
    if high.args[0] is not x or not isinstance(width, int) or width % 2:
        return None
    starts, ends = (high.args[1:3], low.args[1:]), high.args[3]
    return x if starts == ((3, width // 2), (3, 0, width // 2)) and ends >= width else None


def lower_attention(graph: Graph) -> None:
    """scaled_dot_product_attention without dropout, with keys repeated for groups of query heads or not."""
    for node in list(graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default or not is_float(node):
            continue
        q, k, v, mask, dropout, causal = (*node.args, *(None, 0.0, False)[len(node.args) - 3 :])  # type: ignore[misc]
        if dropout or any(len(shape_of(t)) != 4 for t in (q, k, v)) or (mask is not None and len(shape_of(mask)) != 4):
            continue
        options = {"mask": None if _hides_nothing(mask) else mask, "causal": causal, "scale": node.kwargs.get("scale")}
        replace(graph, node, avx512.attention, (q, _unrepeated(k), _unrepeated(v)), options)


def _hides_nothing(mask: Any) -> bool:
    """0, 1, 2, … ≥ 0, in any shape: what transformers' mask of an encoder without padding amounts to."""
    while calls(mask, aten.expand.default) or calls(mask, aten.unsqueeze.default):
        mask = mask.args[0]
    if not calls(mask, aten.ge.Scalar) or mask.args[1] != 0:
        return False
    place = mask.args[0]
    while calls(place, aten.unsqueeze.default) or (calls(place, aten.add.Tensor) and place.args[1:] == (0,)):
        place = place.args[0]
    return calls(place, aten.arange.default)  # from 0 on


def _unrepeated(node: Node) -> Node:
    """x of x[:, :, None].expand(…).reshape(…), which repeats each key head."""
    chain = node
    steps: tuple[tuple[Any, ...], ...] = ((aten.reshape.default, aten.view.default), (aten.expand.default,))
    for targets in (*steps, (aten.unsqueeze.default,)):
        while calls(chain, aten.slice.Tensor):
            chain = chain.args[0]
        if not any(calls(chain, target) for target in targets):
            return node
        if targets[0] is aten.unsqueeze.default and chain.args[1] != 2:
            return node
        chain = chain.args[0]
    while calls(chain, aten.slice.Tensor) and same(chain, chain.args[0]):
        chain = chain.args[0]
    return chain


def fuse_attention(graph: Graph) -> None:
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
            tuple(start for _, start, _ in parts), tuple(shape_of(arg)[1] for arg in node.args), parts[0][2],
            node.kwargs["causal"], node.kwargs["scale"],
        )  # fmt: skip
        product, mask = parts[0][0], node.kwargs["mask"]
        if turned is None:
            replace(graph, last, avx512.PackedAttention(*geometry).__call__, (product,), {"mask": mask})
        else:
            kernel = avx512.CachedAttention(*geometry)
            replace(
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
    if not (calls(q, avx512.rotary) and calls(k, cache.append) and calls(v, cache.append)):
        return None
    (given, key, layer, _), value = k.args, v.args[1]
    if (
        not calls(key, avx512.rotary)
        or q.args[1:] != key.args[1:]
        or any(len(part.users) != 1 for part in (q, k, v, key))
    ):
        return None
    return _Turned([_heads_of(part) for part in (q.args[0], key.args[0], value)], given, layer, *q.args[1:])


def _side_by_side(node: Node) -> Node | None:
    """The node (batch, length, heads · width) that this attention's output becomes."""
    last = node
    user = only_user(last)
    if user is not None and user.target in RESHAPES and same(user, last):
        last = user
    for targets in ((aten.transpose.int,), RESHAPES):
        user = only_user(last)
        last = user if user is not None and user.target in targets else last
    return last if last.target in RESHAPES and len(shape_of(last)) == 3 else None


def _heads_of(node: Node) -> tuple[Node, int, int] | None:
    """(the product, the first column, a head's width) of transpose(view(narrow(product), [.., .., heads, width]), 1, 2)."""
    if not calls(node, aten.transpose.int) or list(node.args[1:]) != [1, 2]:
        return None
    view = node.args[0]
    if not any(calls(view, target) for target in (aten.view.default, aten.reshape.default)):
        return None
    narrow = view.args[0]
    if not calls(narrow, torch.narrow) or len(shape_of(view)) != 4 or len(shape_of(narrow)) != 3:
        return None
    width = shape_of(view)[-1]
    return (narrow.args[0], narrow.args[2], width) if isinstance(width, int) else None
