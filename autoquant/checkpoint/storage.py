"""Between a file and a runtime: modules that only hold a layer's stored tensors, until all of them have been read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from autoquant.checkpoint.format import StoredScheme
from autoquant.checkpoint.packing import unpack, unpack_zero_point
from autoquant.checkpoint.tensors import COMPANIONS
from autoquant.errors import CheckpointError
from autoquant.memory import MappedFiles, trim
from autoquant.models.layers import get_module, inspect, set_module, set_modules
from autoquant.runtimes import Runtime
from autoquant.schemes import QuantizedTensor, packed_words
from autoquant.values import Layer, Scheme


class Stored(nn.Module):
    """The tensors of one layer as a checkpoint stores them, under the same names.

    It stands in the model while weights are read, renamed and tied by whoever reads them.
    """

    def __init__(self, layer: Layer, how: StoredScheme, module: nn.Module, base_dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.how, self.base_dtype = layer, how, base_dtype
        if how.scheme.is_packed:
            self.weight = torch.empty(0, device="meta")  # models that initialise what a file lacks look for one
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
        (rows, width), bits = layer.shape, scheme.weights.num_bits
        zeros = scales = (rows, 1) if scheme.weights.strategy == "channel" else (1,)
        integer = torch.int8
        if scheme.is_packed:
            zeros, integer = (packed_words(rows, bits), 1), torch.int32
            found["weight_packed"] = ((rows, packed_words(width, bits)), integer)
            found["weight_shape"] = ((2,), torch.int64)
        else:
            found["weight"] = (shape, integer)
        found["weight_scale"] = (scales, base_dtype)
        if not scheme.weights.symmetric:
            found["weight_zero_point"] = (zeros, integer)
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
    scheme = how.scheme
    weight = _weight(layer, scheme, tensors)
    device = next(iter(tensors.values())).device
    outliers = torch.tensor(how.outliers, dtype=torch.int32, device=device) if scheme.has_outliers else None
    return runtime.build(
        layer, scheme, module, weight, base_dtype=base_dtype, input_scale=tensors.get("input_scale"), outliers=outliers
    )


def _weight(layer: Layer, scheme: Scheme, tensors: Mapping[str, Tensor]) -> Tensor | QuantizedTensor:
    zero_point = tensors.get("weight_zero_point")
    if scheme.weights is not None and scheme.is_packed:
        bits = scheme.weights.num_bits
        if zero_point is not None:
            zero_point = unpack_zero_point(zero_point, bits, layer.shape[0])
        codes = unpack(tensors["weight_packed"], bits, layer.shape)
        return QuantizedTensor(codes, tensors["weight_scale"], zero_point)
    stored = tensors["weight"]
    matrix = stored.t() if layer.kind == "conv1d" else stored.flatten(1)
    return matrix if scheme.weights is None else QuantizedTensor(matrix, tensors["weight_scale"], zero_point)


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
    stored: dict[str, nn.Module] = {}
    for name, layer in layers_named(model, schemes, where).items():
        schemes[name].check(layer, where)
        stored[name] = Stored(layer, schemes[name], get_module(model, name), base_dtype)
    set_modules(model, stored)


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
