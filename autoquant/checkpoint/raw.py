"""Load the weights of a checkpoint into a module that is no transformers model (timm, open_clip, your own)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from autoquant.artifacts import read_json
from autoquant.checkpoint.files import check_files
from autoquant.checkpoint.formats import format_of
from autoquant.checkpoint.native import RAW_CONFIG, Autoquant
from autoquant.checkpoint.storage import build, layers_named, stored_shapes
from autoquant.errors import CheckpointError, SchemeError
from autoquant.models.layers import get_module, set_module
from autoquant.runtimes import RUNTIMES, Runtime


def load_raw(folder: Path, model: nn.Module | None, device: torch.device, runtime: Runtime | None) -> nn.Module:
    """`model` with the weights and schemes of the checkpoint in `folder`, in eval mode on `device`.

    Raises:
        CheckpointError: `model` is missing or another architecture, or a file is missing, corrupt or incomplete.
    """
    config = read_json(folder / RAW_CONFIG)
    if model is None:
        raise CheckpointError(
            f"{folder} holds a {config.get('model_class')}, which transformers cannot build. Build it yourself (its "
            "weights do not matter) and pass it: autoquant.load(folder, model=built)."
        )
    runtime = runtime or RUNTIMES["torch"]()
    where = str(folder / RAW_CONFIG)
    # The schema version was checked, and taken out, by read_json.
    schemes = format_of({"quant_method": Autoquant.name, **config}, where).read(config, model, where)
    if absent := set(config["layers"]) - set(schemes):
        raise CheckpointError(f"This {type(model).__name__} has no layer {min(absent)}; {folder} is of another model.")
    base = getattr(torch, str(config.get("base_dtype", "float32")))
    layers = layers_named(model, schemes, where)
    shapes = {
        name: stored_shapes(layers[name], schemes[name].scheme, get_module(model, name), base) for name in schemes
    }
    files = check_files(folder, Autoquant.weights_name)
    targets = _targets(model, set(schemes))
    names = [f"{layer}.{last}" for layer, tensors in shapes.items() for last in tensors] + list(targets)
    shared = _shared(model)
    read = {name: _read(files, shared.get(name, name), folder) for name in names}
    used = {shared.get(name, name) for name in names}
    if extra := sorted(set(files) - used):
        raise CheckpointError(
            f"{folder} has the unexpected {', '.join(extra[:3])}; it is of another model, or was changed."
        )
    for name, tensor in read.items():
        expected = tuple(targets[name].shape) if name in targets else _expected(shapes, name)
        if tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, this {type(model).__name__} needs {expected}."
            )
    _assign(model, {name: read[name].to(device) for name in targets})
    for name, layer in layers.items():
        tensors = {last: read[f"{name}.{last}"].to(device) for last in shapes[name]}
        module = get_module(model, name)
        schemes[name].check(layer, where)
        if layer.has_bias:
            module.bias = nn.Parameter(tensors["bias"], requires_grad=False)
        try:
            built = build(layer, schemes[name], module, tensors, runtime, base)
        except SchemeError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        set_module(model, name, built)
    return runtime.serve(model.to(device).eval())


def _targets(model: nn.Module, replaced: set[str]) -> dict[str, Tensor]:
    """Name → tensor of all parameters and persistent buffers outside the layers that are replaced, each once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in model.named_modules():
        if prefix in replaced:
            continue
        head = f"{prefix}." if prefix else ""
        own = {
            **module._parameters,
            **{k: b for k, b in module._buffers.items() if k not in module._non_persistent_buffers_set},
        }
        for name, tensor in own.items():
            if tensor is not None:
                found.setdefault(id(tensor), (head + name, tensor))
    return dict(found.values())


def _shared(model: nn.Module) -> dict[str, str]:
    """Name → the name under which a shared tensor is stored: its first in `named_modules()`."""
    first: dict[int, str] = {}
    names = {}
    for prefix, module in model.named_modules():
        for name, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None:
                full = f"{prefix}.{name}" if prefix else name
                names[full] = first.setdefault(id(tensor), full)
    return names


def _expected(shapes: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]], name: str) -> tuple[int, ...]:
    layer, _, last = name.rpartition(".")
    return shapes[layer][last][0]


def _read(files: dict[str, Path], name: str, folder: Path) -> Tensor:
    if name not in files:
        raise CheckpointError(f"{folder} lacks {name}; it is of another model, or incomplete.")
    with safe_open(files[name], framework="pt") as opened:
        return opened.get_tensor(name)


def _assign(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give every module that uses a tensor the new one, so that what was shared stays shared."""
    old = {
        id(model.get_parameter(n) if _is_parameter(model, n) else model.get_buffer(n)): t for n, t in tensors.items()
    }
    new: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in old:
                fresh = new.setdefault(id(parameter), nn.Parameter(old[id(parameter)], requires_grad=False))
                module._parameters[name] = fresh  # type: ignore[assignment]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and id(buffer) in old:
                module._buffers[name] = new.setdefault(id(buffer), old[id(buffer)])


def _is_parameter(model: nn.Module, name: str) -> bool:
    prefix, _, last = name.rpartition(".")
    return last in model.get_submodule(prefix)._parameters
