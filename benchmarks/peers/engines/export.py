"""A transformers module as a graph: what is exported, and under which names.

Decoding is exported as one step: one token, the keys and values of all tokens before it, and back come the logits and the
grown keys and values. That is how ONNX Runtime and OpenVINO serve language models, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.engines.base import UnsupportedError
from benchmarks.peers.engines.torch_engine import open_torch
from benchmarks.peers.models import Source

BATCH, LENGTH = 2, 24
"""Sizes of the example that is traced: nothing may depend on them."""


class Forward(nn.Module):
    """The judged output alone, inputs by position."""

    def __init__(self, model: Any, source: Source):
        super().__init__()
        self.model, self.source = model, source

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.source.model.inputs, inputs, strict=True))
        more = {"use_cache": False} if self.source.model.auto_class == "AutoModelForCausalLM" else {}
        return getattr(self.model(**named, **more), self.source.model.output)


class Step(nn.Module):
    """One token with the cache of those before it.

    Args:
        beams: the first of the other inputs reorders the cache; OpenVINO keeps a cache inside its attention only then.
    """

    def __init__(self, model: Any, *, beams: bool):
        super().__init__()
        self.model, self.beams = model, beams

    def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        if self.beams:
            past = tuple(tensor.index_select(0, past[0]) for tensor in past[1:])

        cache = DynamicCache(config=self.model.config)
        for layer, key, value in zip(cache.layers, past[0::2], past[1::2], strict=True):
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value  # update() would first concatenate them to an empty tensor
        found = self.model(input_ids=input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True)
        return (found.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def example(source: Source, model: Any) -> tuple[Tensor, ...]:
    """Inputs to trace with. Part of the mask is 0: an all-ones mask would be traced away."""
    if source.model.inputs == ("pixel_values",):
        size = source.task.example(1, None)["pixel_values"].shape[1:]
        return (torch.randn(BATCH, *size),)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (BATCH, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, LENGTH // 2 :] = 0
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(known[name] for name in source.model.inputs)


def traceable(
    source: Source, kind: str, attention: str = "sdpa", *, beams: bool = False
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """(module, example inputs) for an exporter.

    Raises:
        UnsupportedError: decoding of a model that is no language model.
    """
    model = open_torch(source.folder, source, "float32", attn_implementation=attention)
    if kind != "decode":
        return Forward(model, source).eval(), example(source, model)
    config = model.config
    if not hasattr(config, "num_key_value_heads"):
        raise UnsupportedError("no export of a cache for this architecture")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    past = tuple(torch.randn(1, config.num_key_value_heads, LENGTH, width) for _ in range(2 * config.num_hidden_layers))
    start = (torch.ones(1, 1, dtype=torch.long), torch.full((1, 1), LENGTH))
    return Step(model, beams=beams).eval(), (*start, *((torch.zeros(1, dtype=torch.long),) if beams else ()), *past)


def names(source: Source, kind: str, count: int, *, beams: bool = False) -> tuple[list[str], list[str]]:
    """(inputs, outputs) of a graph with `count` inputs."""
    if kind != "decode":
        return list(source.model.inputs), [source.model.output]
    start = ["input_ids", "position_ids", *(["beam"] if beams else [])]
    pasts = [f"{what}_{number}" for number in range((count - len(start)) // 2) for what in ("key", "value")]
    return [*start, *pasts], [source.model.output, *(f"present_{name}" for name in pasts)]


def export_onnx(source: Source, kind: str, path: Path) -> None:
    """The graph as ONNX.

    Where ONNX Runtime has an optimizer for the architecture, attention is exported in the plain form that it recognises
    and fused by it; elsewhere torch's own exporter is used.
    """
    fused = source.model.fusion is not None and kind != "decode"
    module, inputs = traceable(source, kind, "eager" if fused else "sdpa")
    names_in, names_out = names(source, kind, len(inputs))
    if fused:
        axes = {name: dict(source.model.axes) for name in names_in}
        torch.onnx.export(
            module, inputs, str(path), input_names=names_in, output_names=names_out, dynamo=False, opset_version=17,
            dynamic_axes=axes,
        )  # fmt: skip
        return
    past = {2: torch.export.Dim("past", min=2, max=8000)}
    shapes = (None, None, tuple(past for _ in inputs[2:])) if kind == "decode" else varying(source, len(inputs))
    torch.onnx.export(
        module, inputs, str(path), input_names=names_in, output_names=names_out, dynamo=True, dynamic_shapes=shapes,
        external_data=False, verbose=False,
    )  # fmt: skip


def varying(source: Source, count: int) -> tuple[Any, ...]:
    """`dynamic_shapes` of torch.export for `Forward`."""
    limits = {"batch": 512, "length": 512}
    axes = {place: torch.export.Dim(name, min=1, max=limits[name]) for place, name in source.model.axes.items()}
    return (tuple(axes for _ in range(count)),)
