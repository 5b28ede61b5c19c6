"""A captured torch model as one OpenVINO graph, in which every layer is written as its scheme says."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from autoquant.errors import AutoquantError, ModelError
from autoquant.models.layers import get_module
from autoquant.runtimes.graph.capture import Captured, capture, quiet
from autoquant.runtimes.openvino import engine
from autoquant.runtimes.openvino.graph import LayerWriter
from autoquant.runtimes.operators import NODES
from autoquant.runtimes.portable import base_dtype, ported
from autoquant.runtimes.signature import Signature, tensors_in

SECTION = "autoquant"
"""Of the graph's own notes (rt_info): those of `Signature`."""
SMALL = 16
"""Constants of fewer elements are left in float32."""


def captured(model: nn.Module, inputs: Mapping[str, Any]) -> Captured:
    """The graph of a model for inputs like these, of any number of rows and, of ids and masks, positions.

    Raises:
        ModelError: torch.export cannot capture the model.
    """
    values = {name: value for name, value in inputs.items() if not isinstance(value, Tensor)}
    try:
        found = capture(ported(model), {**tensors_in(inputs), **values}, engine.decompositions())
    except AutoquantError:
        raise
    except Exception as error:  # torch.export raises many kinds
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"torch.export cannot capture this {type(model).__name__}: {first}") from error
    return found


def to_openvino(found: Captured, model: nn.Module) -> Any:
    """The graph (an openvino.Model) of `model`, written from what its layers are now.

    Its inputs are named as the model's arguments, its outputs as the fields of what the model returns where these are tensors.
    Float weights are stored in the base dtype.

    Raises:
        SchemeError: a float layer is not in the base dtype.
        ModelError: OpenVINO cannot read the graph, or this CPU does not compute in its base dtype.
    """
    layers = ported(model)
    base = base_dtype(layers)
    if reason := engine.cannot_compute(base):
        raise ModelError(f"{reason}; choose the base dtype {'bfloat16 or ' if base == 'float16' else ''}float32.")
    names: list[str] = []
    with quiet():
        graph = copy.deepcopy(found.module.graph)
    for node in graph.nodes:
        if node.target in NODES:  # names are no constants that OpenVINO's frontend hands on; numbers are
            names.append(str(node.args[1]))
            node.args = (node.args[0], len(names) - 1)
    writer = LayerWriter()

    def write(context: Any) -> list[Any]:
        number = int(np.asarray(context.get_values_from_const_input(1)).reshape(()))
        return [writer.write(get_module(layers, names[number]).tensors, context.get_input(0)).output(0)]  # type: ignore[union-attr,arg-type]

    try:
        with quiet():
            made = engine.convert(fx.GraphModule(found.module, graph), [str(node) for node in NODES], write)
    except RuntimeError as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        raise ModelError(f"OpenVINO cannot read the graph of this {type(model).__name__}: {first}") from error
    _name_inputs(made, found)
    if base == "bfloat16":
        _shrink(made)
    for key, value in engine.FAITHFUL.items():  # OpenVINO honours this one by itself; the precision hint it does not
        made.set_rt_info(value, ["runtime_options", key])
    made.set_rt_info(base, [SECTION, "base_dtype"])
    return made


def sign(graph: Any, found: Captured) -> Any:
    """Name the outputs, and note what `OpenVINOModel` needs to open the graph as a model.

    Raises:
        ModelError: the model returns more than tensors.
    """
    signature = Signature.of(base_of(graph), list(found.inputs), found.outputs)
    for port in graph.outputs:
        port.get_node().input_value(0).get_tensor().set_names(set())
    for port, name in zip(graph.outputs, signature.outputs, strict=True):
        port.get_node().input_value(0).get_tensor().add_names({name})
    for key, value in signature.notes.items():
        graph.set_rt_info(value, [SECTION, key])
    return graph


def base_of(graph: Any) -> str:
    """The base dtype that `to_openvino` has noted."""
    return str(graph.get_rt_info([SECTION, "base_dtype"]).value)


def _name_inputs(graph: Any, found: Captured) -> None:
    shapes = {}
    for port, (name, axes) in zip(graph.inputs, found.inputs.items(), strict=True):
        shapes[port] = engine.openvino().PartialShape([axis if isinstance(axis, int) else -1 for axis in axes])
        port.get_node().set_friendly_name(name)
        port.get_tensor().set_names({name})
    graph.reshape(shapes)


def _shrink(graph: Any) -> None:
    """Store float32 constants in bfloat16 where that changes nothing, as it does for all weights of a bfloat16 model."""
    ov, op = engine.openvino(), engine.opset()
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        bits = np.ascontiguousarray(node.data).view(np.uint32)
        if bits.size < SMALL or (bits & 0xFFFF).any():
            continue
        half = torch.from_numpy((bits >> 16).astype(np.uint16).view(np.int16)).view(torch.bfloat16)
        wide = op.convert(engine.constant(half), "f32")
        wide.set_friendly_name(node.get_friendly_name())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(wide.output(0))
