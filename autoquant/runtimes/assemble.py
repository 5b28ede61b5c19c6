"""Put a layer map onto a model in memory, quickly and again and again: quantized weights are computed once.

The float32 model that it was given stays as it is. For each base dtype there is one working copy, whose layers are
swapped in place; parameters that are float32 in both are shared with the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autoquant.errors import LayerMapError
from autoquant.models.layers import Inventory, cast_floats, get_module, set_modules, share, weight_matrix
from autoquant.runtimes.base import Runtime
from autoquant.schemes import SCHEMES, QuantizedTensor, project, quantize, static_scale
from autoquant.values import Layer, QuantizationArgs


class Assembler:
    """`assemble(layers, base_dtype)` returns a working copy of the model that runs exactly this map."""

    def __init__(
        self, model: nn.Module, inventory: Inventory, runtime: Runtime, input_absmax: Mapping[str, float] | None = None,
        outliers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.inventory = inventory
        self.runtime = runtime
        self.input_absmax = dict(input_absmax or {})
        self.outliers = dict(outliers or {})
        self._copies: dict[str, nn.Module] = {}
        self._floats: dict[tuple[str, str], nn.Module] = {}
        self._weights: dict[tuple[str, QuantizationArgs, str], QuantizedTensor] = {}
        self._modules: dict[tuple[str, str, str], nn.Module] = {}
        self._current: dict[str, dict[str, str]] = {}

    def assemble(self, layers: Mapping[str, str], base_dtype: str) -> nn.Module:
        """The model under this map (layers that it does not name stay in the base dtype).

        The returned module is reused: the next call with the same base dtype changes it.
        """
        if base_dtype not in self._copies:
            self._make_copy(base_dtype)
        model, current = self._copies[base_dtype], self._current[base_dtype]
        wanted = {x: project(SCHEMES[layers.get(x.name, base_dtype)], x.kind).name for x in self.inventory.layers}
        changed = {layer: scheme for layer, scheme in wanted.items() if current[layer.name] != scheme}
        if changed:
            built = {layer.name: self.module(layer, scheme, base_dtype) for layer, scheme in changed.items()}
            set_modules(model, built)
            current |= {layer.name: scheme for layer, scheme in changed.items()}
            self.runtime.refresh(model)
        return model

    def module(self, layer: Layer, scheme_name: str, base_dtype: str) -> nn.Module:
        """The module that runs `scheme_name` for this layer in a model of `base_dtype`; built once."""
        if base_dtype not in self._copies:
            self._make_copy(base_dtype)
        if scheme_name == base_dtype and not self.runtime.builds_floats:
            return self._floats[base_dtype, layer.name]
        key = (layer.name, scheme_name, base_dtype)
        if key not in self._modules:
            scheme, dtype = SCHEMES[scheme_name], getattr(torch, base_dtype)
            source = get_module(self.model, layer.name)
            weight: QuantizedTensor | Tensor
            if scheme.weights is None:
                weight = weight_matrix(source).detach().to(getattr(torch, scheme.name))
            else:
                weight = self.quantized(layer, scheme.weights, base_dtype)
            scale = self.input_scale(layer.name, dtype) if scheme.is_static else None
            outliers = self.outliers_of(layer.name) if scheme.has_outliers else None
            self._modules[key] = self.runtime.build(
                layer, scheme, source, weight, base_dtype=dtype, input_scale=scale, outliers=outliers
            )
        return self._modules[key]

    def input_scale(self, name: str, dtype: torch.dtype) -> Tensor:
        """(1,) of a calibrated layer, where the model is."""
        if name not in self.input_absmax:
            raise LayerMapError(
                f"Layer '{name}' has a static activation scheme but no calibrated range: give input_absmax in the map, "
                "or calibration data with --task and --data."
            )
        return self._beside(name, static_scale(self.input_absmax[name], dtype, f"the input of {name}"))

    def outliers_of(self, name: str) -> Tensor:
        """int32 (some,) outlier channels of a calibrated layer's input, where the model is."""
        if name not in self.outliers:
            raise LayerMapError(
                f"Layer '{name}' has a scheme with outlier channels, which are not known: give outliers in the map, or "
                "calibration data with --task and --data."
            )
        return self._beside(name, torch.tensor(list(self.outliers[name]), dtype=torch.int32))

    def _beside(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(weight_matrix(get_module(self.model, name)).device)

    def held(self) -> int:
        """Bytes of cached weights and modules, about: scales are left out, and a float is taken for four bytes."""
        sizes = {layer.name: math.prod(layer.shape) for layer in self.inventory.layers}
        weights = sum(weight.values.numel() for weight in self._weights.values())
        return weights + sum(sizes[name] * (4 if SCHEMES[scheme].is_float else 1) for name, scheme, _ in self._modules)

    def forget(self, keep: Mapping[str, str] | None = None, over: float = 0) -> None:
        """Free all cached weights and modules (all but those of `keep`) to make room, if they hold more than `over` bytes."""
        if self.held() <= over:
            return
        kept = set((keep or {}).items())
        self._weights.clear()
        self._modules = {key: module for key, module in self._modules.items() if (key[0], key[1]) in kept}

    def quantized(self, layer: Layer, args: QuantizationArgs, base_dtype: str) -> QuantizedTensor:
        """The layer's quantized weight (out, in), its scales stored in `base_dtype`; computed once."""
        key = (layer.tied_to or layer.name, args, base_dtype)
        if key not in self._weights:
            matrix = weight_matrix(get_module(self.model, layer.name))
            self._weights[key] = quantize(matrix, args, scale_dtype=getattr(torch, base_dtype), name=layer.name)
        return self._weights[key]

    def _make_copy(self, base_dtype: str) -> None:
        model = cast_floats(share(self.model), getattr(torch, base_dtype)).eval()
        if getattr(model, "config", None) is not None and hasattr(model.config, "dtype"):
            model.config.dtype = getattr(torch, base_dtype)
        self._copies[base_dtype] = self.runtime.serve(model)
        self._current[base_dtype] = {layer.name: base_dtype for layer in self.inventory.layers}
        for layer in self.inventory.layers:
            self._floats[base_dtype, layer.name] = get_module(model, layer.name)
