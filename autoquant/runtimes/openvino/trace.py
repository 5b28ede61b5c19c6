"""A whole torch model as one OpenVINO graph, in which every layer is written as its scheme says."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from autoquant.errors import ModelError
from autoquant.runtimes.flat import Flat, example_inputs, free_axes
from autoquant.runtimes.openvino import engine
from autoquant.runtimes.openvino.graph import LayerWriter
from autoquant.runtimes.portable import OPERATION, base_dtype, recording, tensors_of

SECTION = "autoquant"
"""Of the graph's own notes (rt_info): `base_dtype`, `inputs`, `outputs` and `returns`."""
SMALL = 16
"""Constants of fewer elements are left in float32."""


def to_openvino(model: nn.Module, example: Mapping[str, Any]) -> Any:
    """The graph (an openvino.Model) of a model whose layers `OpenVINORuntime` or `PortableRuntime` built.

    Rows and, for ids and masks, positions are dynamic. Float weights are stored in the base dtype.

    Raises:
        SchemeError: a float layer is not in the base dtype.
        ModelError: the model cannot be traced, or this CPU does not compute in its base dtype.
    """
    base = base_dtype(model)
    if reason := engine.cannot_compute(base):
        raise ModelError(f"{reason}; choose the base dtype {'bfloat16 or ' if base == 'float16' else ''}float32.")
    tensors = example_inputs(example)
    flat = Flat(model, tensors)
    writer = LayerWriter()

    def write(context: Any) -> list[Any]:
        number = int(np.asarray(context.get_values_from_const_input(1)).reshape(()))
        return [writer.write(tensors_of(number), context.get_input(0)).output(0)]

    try:
        with warnings.catch_warnings(), torch.no_grad(), recording():
            warnings.simplefilter("ignore")
            graph = engine.convert(flat, list(tensors.values()), OPERATION, write)
    except RuntimeError as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        raise ModelError(f"OpenVINO cannot trace this {type(model).__name__}: {first}") from error
    shapes = {}
    for port, (name, tensor) in zip(graph.inputs, tensors.items(), strict=True):
        free = free_axes(tensor)
        shape = [-1 if axis in free else size for axis, size in enumerate(tensor.shape)]
        shapes[port] = engine.openvino().PartialShape(shape)
        port.get_node().set_friendly_name(name)
        port.get_tensor().set_names({name})
    graph.reshape(shapes)
    for port in graph.outputs:
        port.get_node().input_value(0).get_tensor().set_names(set())
    for port, name in zip(graph.outputs, flat.signature.outputs, strict=True):
        port.get_node().input_value(0).get_tensor().add_names({name})
    if base == "bfloat16":
        _shrink(graph)
    notes = {"base_dtype": base, "inputs": ",".join(flat.signature.inputs),
             "outputs": ",".join(flat.signature.outputs), "returns": flat.signature.returns}  # fmt: skip
    for key, value in notes.items():
        graph.set_rt_info(value, [SECTION, key])
    for key, value in engine.FAITHFUL.items():  # OpenVINO honours this one by itself; the precision hint it does not
        graph.set_rt_info(value, ["runtime_options", key])
    return graph


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
