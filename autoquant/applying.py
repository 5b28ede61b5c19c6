"""A layer map put on a model: also one that was found on another model of the same architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoquant import artifacts
from autoquant.checkpoint import format_for, read_layer_map, write_checkpoint
from autoquant.errors import LayerMapError
from autoquant.models.heads import head_of
from autoquant.models.layers import inspect
from autoquant.models.loading import architectures, load_model, resolve, task_for
from autoquant.models.smoothed import smoothed
from autoquant.profile import input_ranges
from autoquant.schemes import get_scheme
from autoquant.tasks import TASKS, Task, make
from autoquant.tasks.base import batches
from autoquant.values import LayerMap


def apply(
    model: str | Path | nn.Module,
    layer_map: str | Path | LayerMap,
    out: str | Path,
    *,
    task: str | Task | None = None,
    data: str | Path | None = None,
    columns: Mapping[str, str | int] | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint of `model` under a layer map, also one found on another model of the same architecture.

    Args:
        task, data: when given, the ranges of static schemes are calibrated again on them.

    Returns:
        what `write_checkpoint` returns.

    Raises:
        LayerMapError: the map does not fit the model; the message says where.
    """
    found = layer_map if isinstance(layer_map, LayerMap) else read_layer_map(layer_map)
    out = artifacts.empty_folder(Path(out), "Choose another --out folder.")
    if isinstance(model, nn.Module):
        return write_checkpoint(model, _calibrated(model, found, task if isinstance(task, Task) else None), out)
    path = resolve(str(model))
    name = task if isinstance(task, str) else None
    loaded = load_model(str(model), _auto_class(path, name, found), trust_remote_code=trust_remote_code)
    built = task if isinstance(task, Task) else None
    if data is not None:
        name = name or task_for(path) or "retrieval"
        built = make(name, str(data), loaded.processor, columns=columns, model=loaded.model)
    found = _calibrated(loaded.model, found, built)
    layers = inspect(loaded.model).layers
    found = replace(found, format=format_for(layers, found.layers, found.base_dtype, model=loaded.model), verdict={})
    return write_checkpoint(loaded.model, found, out, source=loaded.path)


def _auto_class(path: Path, task: str | None, found: LayerMap) -> str:
    """The class to load a model with: what the task wants, or what the model was saved as."""
    names = architectures(path)
    recorded = (found.found_on.get("task") or {}).get("task") if isinstance(found.found_on, Mapping) else None
    for name in (task, recorded):
        if name in TASKS:
            return TASKS[name].auto_class_for(names)
    return next((head.auto_class for name in names if (head := head_of(name)) is not None), "AutoModel")


def _calibrated(model: nn.Module, found: LayerMap, task: Task | None) -> LayerMap:
    """The map with its static ranges and outlier channels calibrated on `task`'s calibration split, if there is one."""
    schemes = {name: get_scheme(scheme) for name, scheme in found.layers.items()}
    static = {name for name, scheme in schemes.items() if scheme.is_static}
    wide = {name for name, scheme in schemes.items() if scheme.has_outliers}
    if task is None or not static | wide:
        for names, known, what in (
            (static, found.input_absmax, "a static scheme but the map holds no range"),
            (wide, found.outliers, "a scheme with outlier channels but the map names none"),
        ):
            if missing := sorted(names - set(known)):
                raise LayerMapError(
                    f"Layer '{missing[0]}' has {what} for it. Give calibration data: --task and --data."
                )
        return found
    layers = [layer for layer in inspect(model).layers if layer.name in static | wide]
    model = smoothed(model, found.smoothing)
    with input_ranges(model, layers) as ranges, torch.no_grad():
        for rows in batches(task, "calibration", 16):
            task.forward(model, task.batch("calibration", rows))
    return replace(
        found,
        input_absmax={name: item.absmax for name, item in ranges.items() if name in static},
        outliers={name: item.outliers for name, item in ranges.items() if name in wide},
    )
