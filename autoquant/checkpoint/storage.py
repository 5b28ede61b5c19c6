"""Between a file and a runtime: modules that only hold a layer's stored tensors, until all of them have been read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from autoquant.checkpoint.format import StoredScheme
from autoquant.checkpoint.tensors import COMPANIONS
from autoquant.errors import CheckpointError
from autoquant.memory import MappedFiles, trim
from autoquant.models.layers import get_module, inspect, set_module
from autoquant.runtimes import Runtime
from autoquant.schemes import QuantizedTensor
from autoquant.values import Layer, Scheme


class Stored(nn.Module):
    """The tensors of one layer as a checkpoint stores them, under the same names.

    It stands in the model while weights are read, renamed and tied by whoever reads them.
    """

    def __init__(self, layer: Layer, how: StoredScheme, module: nn.Module, base_dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.how, self.base_dtype = layer, how, base_dtype
        self.origin = (module,)  # a tuple: the float module's parameters are no part of the model any more
        for name, (shape, dtype) in stored_shapes(layer, how.scheme, module, base_dtype).items():
            empty = torch.empty(shape, dtype=dtype, device="meta")
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))

    def build(self, runtime: Runtime) -> nn.Module:
        """The module that runs the scheme.

        Raises:
            CheckpointError: a stored tensor is missing, or a scale is not a positive number.
        """
        tensors = {name: parameter.detach() for name, parameter in self.named_parameters(recurse=False)}
        module = self.origin[0]
        if getattr(module, "bias", None) is not None:
            module.bias = nn.Parameter(tensors["bias"], requires_grad=False)
        return build(self.layer, self.how, module, tensors, runtime, self.base_dtype)


def stored_shapes(
    layer: Layer, scheme: Scheme, module: nn.Module, base_dtype: torch.dtype
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name → (shape, dtype) of every tensor that this layer has in a checkpoint."""
    shape = tuple(module.weight.shape)  # type: ignore[union-attr, arg-type]
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    if scheme.weights is None:
        found["weight"] = (shape, getattr(torch, str(scheme.dtype)))
    else:
        scales = (layer.shape[0], 1) if scheme.weights.strategy == "channel" else (1,)
        found["weight"] = (shape, torch.int8)
        found["weight_scale"] = (scales, base_dtype)
        if not scheme.weights.symmetric:
            found["weight_zero_point"] = (scales, torch.int8)
    if scheme.is_static:
        found["input_scale"] = ((1,), base_dtype)
    if layer.has_bias:
        found["bias"] = (tuple(module.bias.shape), base_dtype)  # type: ignore[union-attr, arg-type]
    return found


def build(
    layer: Layer,
    how: StoredScheme,
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    runtime: Runtime,
    base_dtype: torch.dtype,
) -> nn.Module:
    """The runtime's module for a layer from its stored tensors; `module` gives the geometry and the bias."""
    for name, tensor in tensors.items():
        if tensor.device.type == "meta":
            raise CheckpointError(f"{layer.name}.{name} is not in the checkpoint, which is incomplete. Write it again.")
        if (
            name in COMPANIONS
            and tensor.is_floating_point()
            and not bool((torch.isfinite(tensor) & (tensor > 0)).all())
        ):
            raise CheckpointError(f"{layer.name}.{name} holds a scale that is not a positive number. Write it again.")
    stored = tensors["weight"]
    matrix = stored.t() if layer.kind == "conv1d" else stored.flatten(1)
    weight: Tensor | QuantizedTensor = matrix
    scheme = how.scheme
    if scheme.weights is not None:
        weight = QuantizedTensor(matrix, tensors["weight_scale"], tensors.get("weight_zero_point"))
    outliers = torch.tensor(how.outliers, dtype=torch.int32, device=matrix.device) if scheme.has_outliers else None
    return runtime.build(
        layer, scheme, module, weight, base_dtype=base_dtype, input_scale=tensors.get("input_scale"), outliers=outliers
    )


def layers_named(model: nn.Module, names: Iterable[str], where: str) -> dict[str, Layer]:
    """The layers of `model` with these names.

    Raises:
        CheckpointError: the model has no such layer.
    """
    layers = {layer.name: layer for layer in inspect(model).layers}
    if unknown := [name for name in names if name not in layers]:
        more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise CheckpointError(
            f"{where} quantizes {unknown[0]}{more}, which autoquant cannot run in this {type(model).__name__}."
        )
    return {name: layers[name] for name in names}


def place(model: nn.Module, schemes: Mapping[str, StoredScheme], base_dtype: torch.dtype, where: str) -> None:
    """Put a `Stored` in the place of every layer that `schemes` names."""
    for name, layer in layers_named(model, schemes, where).items():
        schemes[name].check(layer, where)
        set_module(model, name, Stored(layer, schemes[name], get_module(model, name), base_dtype))


def run(model: nn.Module, runtime: Runtime) -> None:
    """Put the runtime's modules in the place of every `Stored`.

    What a kernel has packed is not held a second time, as pages of the file: they are given back layer by layer.
    """
    files = MappedFiles()
    for name, module in [(name, module) for name, module in model.named_modules() if isinstance(module, Stored)]:
        set_module(model, name, module.build(runtime))
        for tensor in module.parameters(recurse=False):
            files.give_back(tensor.data_ptr(), tensor.nbytes)
    files.give_back_all()
    trim()
