"""A whole torch model as one ONNX graph, in which every layer is written as its scheme says."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from autoquant.errors import AutoquantError, ModelError
from autoquant.exports.onnx import engine
from autoquant.exports.onnx.graph import FLOAT, LayerWriter
from autoquant.models.layers import get_module
from autoquant.runtimes.graph.capture import quiet, record
from autoquant.runtimes.portable import PortableRuntime, base_dtype, ported
from autoquant.runtimes.signature import Signature, plain, tensors_in

AXES = ("rows", "positions")
SMALL = 16
"""Initializers of fewer elements are left in float32."""


class ONNXLayers(PortableRuntime):
    """Every scheme that a layer can have; floats are computed in float32, whatever they are stored in."""

    name = "onnx"


def to_onnx(model: nn.Module, example: Mapping[str, Any]) -> Any:
    """The graph (an onnx.ModelProto) of a model whose layers `ONNXLayers` built.

    Rows and, for ids and masks, positions are dynamic. Float weights are stored in the base dtype.

    Raises:
        ModelError: the model cannot be captured.
        SchemeError: a float layer is not in the base dtype.
    """
    layers = ported(model)
    base = base_dtype(layers)
    tensors = tensors_in(example)
    try:
        program, sizes = record(layers, {**tensors, **plain(model)})
        signature = Signature.of(base, list(tensors), program.call_spec.out_spec)
        with quiet(), _silent(), torch.no_grad():
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=list(tensors), output_names=list(signature.outputs),
                custom_translation_table=engine.translations(),
            )  # fmt: skip
    except AutoquantError:
        raise
    except Exception as error:  # kinds of torch.export, of the exporter and of what they call
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        raise ModelError(f"torch.onnx cannot export this {type(model).__name__}: {first}") from error
    assert made is not None
    proto = made.model_proto
    _replace(proto, layers)
    for port in proto.graph.input:
        for axis, size in enumerate(sizes[port.name]):
            if not isinstance(size, int):
                port.type.tensor_type.shape.dim[axis].dim_param = AXES[axis]
    if base != "float32":
        _shrink(proto, getattr(torch, base))
    _forget_sources(proto)
    engine.onnx().helper.set_model_props(proto, signature.notes)
    return proto


def _replace(proto: Any, layers: nn.Module) -> None:
    """Write the layers in the places of their nodes, in order."""
    writer = LayerWriter()
    nodes = []
    for node in proto.graph.node:
        if node.domain != engine.DOMAIN:
            nodes.append(node)
            continue
        noted = {attribute.name: attribute for attribute in node.attribute}
        tensors: Any = get_module(layers, noted["name"].s.decode()).tensors
        writer.write(tensors, node.input[0], node.output[0], noted["rank"].i)
        nodes += writer.nodes
        writer.nodes = []
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(writer.initializers.values())
    kept = [item for item in proto.opset_import if item.domain != engine.DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _shrink(proto: Any, dtype: torch.dtype) -> None:
    """Store float32 initializers in `dtype` where that changes nothing, as it does for all weights of such a model."""
    casts = []
    for number, item in enumerate(proto.graph.initializer):
        if item.data_type != FLOAT or item.name.endswith("_scale"):
            continue
        value = torch.from_numpy(engine.array(item).copy())
        if value.numel() < SMALL or not torch.equal(value.to(dtype).float(), value):
            continue
        stored = f"{item.name}_{str(dtype).removeprefix('torch.')}"
        casts.append(engine.node("Cast", [stored], item.name, to=FLOAT))
        proto.graph.initializer[number].CopyFrom(engine.initializer(stored, value.to(dtype)))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _forget_sources(proto: Any) -> None:
    """Take out the stack traces that the exporter leaves at every node: folders of this machine, and most of a small file."""
    for item in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    del proto.graph.value_info[:]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hide what the exporter prints and logs: what a user must know is raised as an error instead."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
