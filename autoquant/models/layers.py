"""Which modules of a model can be quantized, which cannot and why, and what identifies the model."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autoquant.errors import ModelError
from autoquant.values import Group, Layer, Skipped

_KIND_OF: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    Conv1D: "conv1d",
    nn.Embedding: "embedding",
    nn.Conv2d: "conv2d",
}

FUSED = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"))
"""Sibling projections that serving engines (vLLM, for one) fuse into one product, and read one scheme for."""


ORIGIN = "_autoquant_origin"
"""Attribute of a copy that computes the same with other weights: the fingerprint of the model that it was made from."""


@dataclass(frozen=True)
class Inventory:
    """What a model consists of, in the order of `named_modules()`."""

    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]

    def layer(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)


def inspect(model: nn.Module) -> Inventory:
    """List the quantizable layers of a model, and every other module that owns weights with the reason it is skipped.

    Raises:
        ModelError: no layer can be quantized.
    """
    found = survey(model)
    if not found.layers:
        raise ModelError(
            f"{type(model).__name__} has no layer that can be quantized (Linear, Conv1D of GPT-2, Conv2d, Embedding)."
        )
    return found


def survey(model: nn.Module) -> Inventory:
    """As `inspect`; the list may be empty, as it is of a model whose layers have all been exchanged."""
    owners: dict[int, str] = {}
    layers, skipped = [], []
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False)]
        if not own:
            continue
        kind = _KIND_OF.get(type(module))
        reason = why_left_alone(module) if kind else "no quantization for this type; a small share of the weights"
        if kind is None or reason:
            skipped.append(Skipped(name, type(module).__name__, sum(p.numel() for p in own), reason or ""))
            continue
        weight = module.weight
        owner = owners.setdefault(id(weight), name)
        matrix = weight_matrix(module)
        bias = getattr(module, "bias", None)
        layers.append(
            Layer(
                name=name,
                kind=kind,
                shape=(matrix.shape[0], matrix.shape[1]),
                has_bias=bias is not None,
                tied_to=owner if owner != name else None,
                patchify=isinstance(module, nn.Conv2d) and _is_patchify(module),
            )
        )
    return Inventory(tuple(layers), tuple(skipped))


def weight_matrix(module: nn.Module) -> Tensor:
    """The weight of a quantizable module as (out, in), a view: Conv1D transposed, Conv2d flattened."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    if isinstance(module, Conv1D):
        return weight.t()
    return weight.flatten(1)


def groups(layers: Sequence[Layer], *, fuse: bool = False) -> tuple[Group, ...]:
    """Partition the layers into groups that share a choice: tied weights always, fused projections if `fuse`."""
    key: dict[str, str] = {}
    for layer in layers:
        prefix, _, last = layer.name.rpartition(".")
        family = next((members for members in FUSED if last in members), None) if fuse else None
        key[layer.name] = layer.tied_to or (f"{prefix}.{'+'.join(family)}" if family else layer.name)
    names: dict[str, list[Layer]] = {}
    for layer in layers:
        names.setdefault(key[layer.name], []).append(layer)
    return tuple(Group(name, tuple(members)) for name, members in names.items())


def siblings(layers: Sequence[Layer]) -> dict[str, int]:
    """Which projections of `FUSED` a model has, and how many times: `{"q_proj+k_proj+v_proj": 30}`."""
    names = [group.name.rpartition(".")[2] for group in groups(layers, fuse=True) if len(group.layers) > 1]
    families = ["+".join(members) for members in FUSED]
    return {family: names.count(family) for family in families if family in names}


def block_of(name: str) -> str:
    """The transformer block that a layer belongs to: its name up to and including the first number."""
    match = re.match(r"^(.*?\.\d+)(\.|$)", name)
    return match.group(1) if match else name


def fingerprint_model(model: nn.Module) -> str:
    """16 hex digits over the names, shapes and a sample of the values of all weights; of a smoothed model those before."""
    if origin := getattr(model, ORIGIN, None):
        return origin
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_architecture(layers: Sequence[Layer]) -> str:
    """16 hex digits over names and shapes: equal for a fine-tune of the same architecture."""
    text = "\n".join(f"{layer.name} {layer.kind} {layer.shape}" for layer in layers)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def get_module(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name)


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace a module everywhere in `model` where that very module is used."""
    set_modules(model, {name: module})


def set_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """The same for several, in one pass over the model."""
    new = {id(get_module(model, name)): module for name, module in modules.items()}
    for parent in list(model.modules()):
        for child, value in parent._modules.items():
            if id(value) in new:
                parent._modules[child] = new[id(value)]


def share(model: nn.Module, device: str | None = None) -> nn.Module:
    """A copy of `model` whose modules are new and whose parameters are the same memory (or on `device`, e.g. "meta").

    Casting it or replacing its modules leaves `model` unchanged; weights that are shared stay shared.
    """
    memo: dict[int, Tensor] = {}
    for parameter in model.parameters():
        data = parameter.detach() if device is None else parameter.detach().to(device)
        memo[id(parameter)] = nn.Parameter(data, requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().clone() if device is None else buffer.detach().to(device)
    return copy.deepcopy(model, memo)


def cast_floats(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast parameters and persistent float buffers in place, as `from_pretrained(dtype=…)` does.

    Buffers that no checkpoint holds (rotary frequencies) and modules that the model wants in float32 keep their dtype.
    """
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and not keeps_dtype(model, f"{prefix}.{name}", dtype):
                parameter.data = parameter.data.to(dtype)
        transient = module._non_persistent_buffers_set
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in transient:
                setattr(module, name, buffer.to(dtype))
    return model


def keeps_dtype(model: nn.Module, parameter: str, dtype: torch.dtype) -> bool:
    """Whether the model wants the parameter of this name in float32 when everything else is cast to `dtype`."""
    keep = tuple(getattr(model, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    keep += tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    return any(part in parameter.split(".") for part in keep)


def why_left_alone(module: nn.Module) -> str | None:
    """Why no scheme changes a layer of such a kind; None: one may."""
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        return "grouped or non-zero-padded convolution"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "embedding with max_norm changes its weights as it is read"
    return None


def _is_patchify(module: nn.Conv2d) -> bool:
    return (
        tuple(module.kernel_size) == tuple(module.stride)
        and module.padding in ((0, 0), "valid")
        and tuple(module.dilation) == (1, 1)
    )
