"""A captured graph as plain data, and back: what a file can hold, so that the next process need not capture it again.

Only the operators named here can be rebuilt, only parameters and buffers of the model can be read, and names in the data
become neither code nor attributes of anything else.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx import Graph, GraphModule
from torch.utils._pytree import treespec_dumps, treespec_loads

from autoquant.runtimes.graph.capture import Captured
from autoquant.runtimes.graph.nodes import Kind, kind_of

_ATEN = """
__and__ __or__ __xor__ _safe_softmax _softmax _to_copy _unsafe_view abs adaptive_avg_pool1d adaptive_avg_pool2d add
addmm alias all amax amin any arange argmax argmin avg_pool2d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bmm
broadcast_to cat ceil chunk clamp clamp_max clamp_min clone concat constant_pad_nd contiguous conv1d conv2d convolution
copy cos cumsum detach detach_ diff div dropout einsum elu embedding empty empty_like eq erf exp expand expand_as eye
feature_dropout flatten flip floor floor_divide full full_like gather ge gelu group_norm gt hardtanh index index_select
isfinite isinf isnan layer_norm le leaky_relu lift_fresh lift_fresh_copy linear linspace log log_softmax logical_and
logical_not logical_or logsumexp lt masked_fill matmul max max_pool2d maximum mean min minimum mm movedim mul narrow
native_layer_norm ne neg new_empty new_full new_ones new_zeros norm numpy_T ones ones_like outer pad permute pow
reciprocal relu relu6 remainder repeat repeat_interleave reshape rms_norm roll round rsqrt rsub scalar_tensor
scaled_dot_product_attention select sigmoid sign silu sin slice softmax softplus split split_with_sizes sqrt square
squeeze stack std sub sum sym_numel sym_size t tan tanh tile to transpose tril triu true_divide type_as unbind unflatten
unfold unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var view view_as where zeros zeros_like
"""
ATEN = frozenset(_ATEN.split())
"""Operators of torch that compute, and do nothing else; of any overload."""
AUTOQUANT = frozenset(("append", "convolution", "layer"))
SIZES: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in (
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "neg",
        "getitem",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    )
}
"""Functions of sizes, and the parts of a tuple."""
LARGEST = 4096
"""Elements of a constant that was made in the forward pass itself."""
ROOT = "model."
"""Before the name of each parameter in a captured graph."""
Data = dict[str, Any]


class UnstorableError(Exception):
    """A graph holds something that plain data cannot, or data holds something that no graph may."""


class _Root:
    """Where a rebuilt graph finds its parameters: attributes `model` and `constant_N`."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.model, self.graph = model, graph


def to_plain(captured: Captured) -> Data:
    """Nodes in order, each with what it is of, its arguments and the dtype and shape of its result.

    Raises:
        UnstorableError: an operator that is not known here, a large constant, or an argument of another kind.
    """
    numbers: dict[fx.Node, int] = {}
    nodes: list[Data] = []
    for node in captured.module.graph.nodes:
        target = str(node.target)
        if (node.op == "get_attr" and not node.users) or target.startswith("aten._assert"):
            continue
        found: Data = {"op": node.op}
        if node.op == "get_attr":
            found |= _attribute(captured.module, target)
        elif node.op == "call_function":
            found |= {
                "target": _name(node.target),
                "args": _data(node.args, numbers),
                "kwargs": _data(node.kwargs, numbers),
            }
        elif node.op == "output":
            found["args"] = _data(node.args, numbers)
        elif node.op != "placeholder":
            raise UnstorableError(f"a node of kind {node.op}")
        if (kind := kind_of(node)) is not None:
            found["kind"] = [str(kind.dtype).removeprefix("torch."), [_size(size) for size in kind.shape]]
        numbers[node] = len(nodes)
        nodes.append(found)
    sizes = {name: [list(a) if isinstance(a, tuple) else a for a in axes] for name, axes in captured.inputs.items()}
    return {"inputs": sizes, "outputs": treespec_dumps(captured.outputs), "nodes": nodes}


def from_plain(data: Mapping[str, Any], model: nn.Module) -> Captured:
    """The graph of `model` that `to_plain` wrote.

    Raises:
        UnstorableError, KeyError, TypeError, ValueError, AttributeError, NotImplementedError: the data are no such graph.
    """
    graph = Graph()
    root = _Root(model, graph)
    made: list[fx.Node] = []
    for number, item in enumerate(data["nodes"]):
        op = item["op"]
        if op == "placeholder":
            node = graph.placeholder(f"input_{number}")
        elif op == "get_attr":
            node = graph.create_node("get_attr", _path(item, root, number))
        elif op == "call_function":
            target = _target(item["target"])
            args, kwargs = _value(item["args"], made), _value(item["kwargs"], made)
            if not _keywords(target) >= set(kwargs):
                raise UnstorableError(f"arguments that {item['target']} does not have")
            node = graph.call_function(target, tuple(args), kwargs)
        elif op == "output":
            node = graph.output(*_value(item["args"], made))
        else:
            raise UnstorableError(f"a node of kind {op!r}")
        if "kind" in item:
            dtype, shape = item["kind"]
            node.meta["val"] = Kind(
                _torch(dtype, torch.dtype), tuple(int(s) if isinstance(s, int) else str(s) for s in shape)
            )
        made.append(node)
    inputs = {
        str(name): tuple(
            int(axis) if isinstance(axis, int) else (str(axis[0]), int(axis[1]), int(axis[2])) for axis in axes
        )
        for name, axes in data["inputs"].items()
    }
    if len(inputs) != sum(node.op == "placeholder" for node in made) or not made or made[-1].op != "output":
        raise UnstorableError("inputs or outputs are missing")
    return Captured(cast(GraphModule, root), inputs, treespec_loads(data["outputs"]))


def _attribute(module: GraphModule, target: str) -> Data:
    if target.startswith(ROOT):
        return {"name": target.removeprefix(ROOT)}
    value = operator.attrgetter(target)(module)
    if not isinstance(value, Tensor) or value.numel() > LARGEST:
        raise UnstorableError(f"the attribute {target}")
    return {"constant": _data(value.tolist(), {}), "dtype": str(value.dtype).removeprefix("torch.")}


def _path(item: Mapping[str, Any], root: _Root, number: int) -> str:
    """Where the attribute of a node is, below `root`."""
    if "name" in item:
        prefix, _, last = str(item["name"]).rpartition(".")
        owner = root.model.get_submodule(prefix)
        if owner._parameters.get(last) is None and owner._buffers.get(last) is None:
            raise UnstorableError(f"the model has no parameter {item['name']}")
        return ROOT + str(item["name"])
    path = f"constant_{number}"
    setattr(root, path, torch.tensor(_value(item["constant"], []), dtype=_torch(item["dtype"], torch.dtype)))
    return path


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
    else:
        name = "size." + next((known for known, function in SIZES.items() if function is target), "?")
    _target(name)
    return name


def _target(name: str) -> Callable[..., Any]:
    space, _, rest = str(name).partition(".")
    packet, _, overload = rest.partition(".")
    if space == "size" and rest in SIZES:
        return SIZES[rest]
    if packet in {"aten": ATEN, "autoquant": AUTOQUANT}.get(space, ()):
        found = getattr(getattr(torch.ops, space), packet)
        if overload in found.overloads():
            return getattr(found, overload)
    raise UnstorableError(f"the operator {name}")


def _keywords(target: Any) -> set[str]:
    return (
        {argument.name for argument in target._schema.arguments} if isinstance(target, torch._ops.OpOverload) else set()
    )


def _size(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)


def _data(value: Any, numbers: Mapping[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"node": numbers[value]}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [_data(item, numbers) for item in value]}
    if isinstance(value, list):
        return [_data(item, numbers) for item in value]
    if isinstance(value, dict):
        return {"dict": {str(key): _data(item, numbers) for key, item in value.items()}}
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device) and value.type == "cpu":
        return {"device": "cpu"}
    raise UnstorableError(f"an argument of type {type(value).__name__}")


def _value(data: Any, made: list[fx.Node]) -> Any:
    if isinstance(data, list):
        return [_value(item, made) for item in data]
    if not isinstance(data, dict):
        return data
    ((what, inner),) = data.items()
    if what == "node":
        return made[inner] if inner >= 0 else _refuse(inner)
    if what == "tuple":
        return tuple(_value(item, made) for item in inner)
    if what == "dict":
        return {str(key): _value(item, made) for key, item in inner.items()}
    if what == "float":
        return float(inner)
    if what == "torch":
        return _torch(inner, torch.dtype, torch.layout, torch.memory_format)
    if what == "device":
        return torch.device("cpu")
    return _refuse(what)


def _refuse(what: Any) -> Any:
    raise UnstorableError(f"a value of kind {what!r}")


def _torch(name: str, *kinds: type) -> Any:
    found = getattr(torch, str(name), None)
    if not isinstance(found, kinds):
        raise UnstorableError(f"torch.{name}")
    return found
