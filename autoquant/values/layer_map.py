"""The product that people keep: which layer runs which scheme, and what that was found on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoquant.errors import LayerMapError, SchemeError, nearest, reject_unknown
from autoquant.values.layer import FLOAT_DTYPES
from autoquant.values.outliers import from_text, to_text
from autoquant.values.smoothing import Smoothing

KEYS = (
    "format", "base_dtype", "layers", "groups", "input_absmax", "outliers", "model", "found_on", "verdict", "smoothing",
)  # fmt: skip


@dataclass(frozen=True)
class LayerMap:
    """Layer name → scheme name, plus the float dtype of everything else.

    Attributes:
        layers: every quantizable layer and its scheme's name.
        base_dtype: dtype of all weights that no layer names, and of the activations between layers.
        groups: layers that share one choice (tied weights, fused projections), by layer names.
        input_absmax: calibrated largest absolute input of each layer that runs a static scheme.
        outliers: input channels with the largest values, of each layer that runs a scheme with outlier channels.
        format: checkpoint format that can hold this map: `compressed-tensors` or `autoquant`.
        model: fingerprint, class and name of the model that it was found on.
        found_on: task, data, hardware, runtime, budget, seed.
        verdict: certification's answer for this map, or {} if it was not certified.
        smoothing: channels that are scaled before anything is quantized; the float model computes the same with and without.
    """

    layers: Mapping[str, str]
    base_dtype: str = "float32"
    groups: tuple[tuple[str, ...], ...] = ()
    input_absmax: Mapping[str, float] = field(default_factory=dict)
    outliers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    format: str = "compressed-tensors"
    model: Mapping[str, Any] = field(default_factory=dict)
    found_on: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)
    smoothing: tuple[Smoothing, ...] = ()

    def __post_init__(self) -> None:
        if self.base_dtype not in FLOAT_DTYPES:
            raise LayerMapError(
                f"base_dtype: unknown dtype '{self.base_dtype}'.{nearest(self.base_dtype, FLOAT_DTYPES)}"
            )

    def effect(self) -> list[Any]:
        """What the map does to a model, whatever it was found on; plain data."""
        kept = [self.base_dtype, dict(self.layers), dict(self.input_absmax)]
        return [*kept, {k: list(v) for k, v in self.outliers.items()}, [one.to_dict() for one in self.smoothing]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "base_dtype": self.base_dtype,
            "model": dict(self.model),
            "found_on": dict(self.found_on),
            "verdict": dict(self.verdict),
            "groups": [list(group) for group in self.groups],
            "input_absmax": {name: float(value) for name, value in self.input_absmax.items()},
            **({"outliers": {name: to_text(found) for name, found in self.outliers.items()}} if self.outliers else {}),
            "layers": dict(self.layers),
            **({"smoothing": [scaling.to_dict() for scaling in self.smoothing]} if self.smoothing else {}),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], known_schemes: Mapping[str, Any], where: str) -> LayerMap:
        """Check and read what `to_dict` wrote (and people edited).

        Raises:
            LayerMapError: unknown key, missing `layers`, or a value of the wrong type.
            SchemeError: a scheme that is not in `known_schemes`, with the nearest one that is.
        """
        reject_unknown(value, KEYS, where, LayerMapError)
        layers = value.get("layers")
        if not isinstance(layers, dict) or not layers:
            raise LayerMapError(f"{where}: 'layers' must map layer names to scheme names.")
        for name, scheme in layers.items():
            if scheme not in known_schemes:
                raise SchemeError(
                    f"{where}: layer '{name}' has the unknown scheme '{scheme}'.{nearest(scheme, known_schemes)}"
                )
        for key in ("input_absmax", "outliers", "model", "found_on", "verdict"):
            if not isinstance(value.get(key) or {}, dict):
                raise LayerMapError(f"{where}: '{key}' must be a mapping.")
        outliers = {}
        for name, text in (value.get("outliers") or {}).items():
            if (channels := from_text(text)) is None:
                raise LayerMapError(f"{where}: 'outliers' of {name} must be channel numbers, such as '3 17 40'.")
            outliers[str(name)] = channels
        groups = value.get("groups") or []
        if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
            raise LayerMapError(f"{where}: 'groups' must be a list of lists of layer names.")
        smoothing = value.get("smoothing") or []
        if not isinstance(smoothing, list):
            raise LayerMapError(f"{where}: 'smoothing' must be a list.")
        return cls(
            layers={str(name): str(scheme) for name, scheme in layers.items()},
            base_dtype=str(value.get("base_dtype", "float32")),
            groups=tuple(tuple(str(name) for name in group) for group in groups),
            input_absmax={str(k): float(v) for k, v in (value.get("input_absmax") or {}).items()},
            outliers=outliers,
            format=str(value.get("format", "compressed-tensors")),
            model=value.get("model") or {},
            found_on=value.get("found_on") or {},
            verdict=value.get("verdict") or {},
            smoothing=tuple(Smoothing.from_dict(scaling, where) for scaling in smoothing),
        )
