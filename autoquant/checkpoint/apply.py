"""Does a layer map fit a model?"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from torch import nn

from autoquant.checkpoint.formats import cannot_hold
from autoquant.checkpoint.outliers import outlier_problem
from autoquant.errors import LayerMapError
from autoquant.models.layers import fingerprint_architecture, fingerprint_model, inspect
from autoquant.runtimes import RUNTIMES, Runtime
from autoquant.schemes import get_scheme, project
from autoquant.values import Layer, LayerMap, Scheme

_SHOWN = 8
"""Lines of an error message before it says how many more there are."""


def apply_map(model: nn.Module, layer_map: LayerMap, *, runtime: Runtime | None = None) -> tuple[str, ...]:
    """Check that `layer_map` fits `model`; the model is left unchanged.

    Returns:
        Notes: what fits but should be known, such as that the map was found on another model.

    Raises:
        LayerMapError: layers that are only in the map or only in the model (with the nearest names), schemes that a
            layer cannot have, tied layers whose weights would differ, a static scheme without `input_absmax`, one with
            outlier channels without (or with impossible) `outliers`, or a format that cannot hold the map. All are listed.
    """
    runtime = runtime or RUNTIMES["torch"]()
    layers = inspect(model).layers
    found = _names(layers, layer_map)
    known = [layer for layer in layers if layer.name in layer_map.layers]
    for layer in known:
        found += _scheme_problems(layer, layer_map, runtime)
    found += _tied_problems(known, layer_map)
    if not found:
        found += format_problems(layers, layer_map)
    if found:
        more = f"\n  … and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        listed = "".join(f"\n  {line}" for line in found[:_SHOWN])
        raise LayerMapError(f"The layer map does not fit this {type(model).__name__}:{listed}{more}")
    return _notes(model, layers, layer_map)


def schemes_of(layers: tuple[Layer, ...], layer_map: LayerMap) -> dict[str, Scheme]:
    """Layer name → what it runs, in the order of the model."""
    return {layer.name: project(get_scheme(layer_map.layers[layer.name]), layer.kind) for layer in layers}


def format_problems(layers: tuple[Layer, ...], layer_map: LayerMap) -> list[str]:
    """Why the format that the map names cannot hold its schemes."""
    lines = cannot_hold(layer_map.format, layers, layer_map.layers, layer_map.base_dtype)
    return [f"format {layer_map.format} cannot hold {line}; set 'format: autoquant'" for line in lines]


def _names(layers: tuple[Layer, ...], layer_map: LayerMap) -> list[str]:
    names = [layer.name for layer in layers]
    missing = [name for name in names if name not in layer_map.layers]
    lines = []
    for name in layer_map.layers:
        if name not in names:
            close = difflib.get_close_matches(name, missing or names, n=1, cutoff=0.5)
            lines.append(f"{name}: in the map, not in the model" + (f"; did you mean '{close[0]}'?" if close else ""))
    return lines + [f"{name}: in the model, not in the map; name it there, e.g. '{name}: float32'" for name in missing]


def _scheme_problems(layer: Layer, layer_map: LayerMap, runtime: Runtime) -> list[str]:
    scheme = get_scheme(layer_map.layers[layer.name])
    if project(scheme, layer.kind) is not scheme:
        usable = project(scheme, layer.kind).name
        return [f"{layer.name}: {scheme.name} quantizes an input, which an {layer.kind} has not; write {usable}"]
    if reason := runtime.supports(layer, scheme):
        return [f"{layer.name}: {runtime.name} cannot run {scheme.name}: {reason}"]
    if scheme.is_static and layer.name not in layer_map.input_absmax:
        return [f"{layer.name}: {scheme.name} needs a calibrated range under 'input_absmax'; or write a8-token"]
    if scheme.is_static and not 0 <= layer_map.input_absmax[layer.name] < float("inf"):
        return [f"{layer.name}: input_absmax must be finite and not negative, not {layer_map.input_absmax[layer.name]}"]
    if scheme.has_outliers and (problem := outlier_problem(layer_map.outliers.get(layer.name, ()), layer.shape[1])):
        return [f"{layer.name}: {scheme.name} needs outlier channels under 'outliers', {problem}; or write a8-token"]
    return []


def _tied_problems(layers: list[Layer], layer_map: LayerMap) -> list[str]:
    names: Mapping[str, str] = layer_map.layers
    lines = []
    for layer in layers:
        if layer.tied_to is None or layer.tied_to not in names:
            continue
        own, owner = get_scheme(names[layer.name]), get_scheme(names[layer.tied_to])
        if (own.dtype, own.weights) != (owner.dtype, owner.weights):
            lines.append(
                f"{layer.name} ({own.name}) shares its weight with {layer.tied_to} ({owner.name}); make them alike"
            )
    return lines


def _notes(model: nn.Module, layers: tuple[Layer, ...], layer_map: LayerMap) -> tuple[str, ...]:
    notes = []
    made_on = layer_map.model
    if made_on.get("fingerprint") not in (None, fingerprint_model(model)):
        notes.append(
            f"The map was found on another model ({made_on.get('name', made_on['fingerprint'])}); on a fine-tune of it "
            "the accuracy can differ: certify the new checkpoint."
        )
    if made_on.get("architecture") not in (None, fingerprint_architecture(layers)):
        notes.append("The layers have other shapes than those of the model that the map was found on.")
    return tuple(notes)
