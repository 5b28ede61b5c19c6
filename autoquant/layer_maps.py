"""The layer map of a candidate: its schemes, and what they were found on."""

from __future__ import annotations

import torch

from autoquant.checkpoint import format_for
from autoquant.models.smoothed import smoothing_of
from autoquant.schemes import SCHEMES
from autoquant.session import Session, now
from autoquant.values import Candidate, LayerMap, Profile


def make_map(session: Session, candidate: Candidate, profile: Profile) -> LayerMap:
    """The layer map of a candidate, with what it was found on."""
    task = session.task.describe()
    schemes = {name: SCHEMES[scheme] for name, scheme in candidate.layers.items()}
    return LayerMap(
        layers=dict(candidate.layers),
        base_dtype=candidate.base_dtype,
        groups=tuple(tuple(layer.name for layer in group.layers) for group in session.groups if len(group.layers) > 1),
        input_absmax={name: value for name, value in input_absmax(profile).items() if schemes[name].is_static},
        outliers={name: found for name, found in outliers(profile).items() if schemes[name].has_outliers},
        format=format_for(session.inventory.layers, candidate.layers, candidate.base_dtype, model=session.model),
        model={
            "name": session.loaded.source,
            "class": type(session.model).__name__,
            "fingerprint": session.model_fingerprint,
            "architecture": session.architecture_fingerprint,
        },
        found_on={
            "task": task,
            "hardware": session.runtime.description(),
            "runtime": session.runtime.name,
            "threads": torch.get_num_threads(),
            "shape": {"batch_size": session.batch_size, "seq_len": session.seq_len},
            "budget": {
                "drop": session.budget.drop,
                "relative": session.budget.relative,
                "confidence": session.budget.confidence,
            },
            "objective": session.settings.objective,
            "space": session.space.name,
            "seed": session.settings.seed,
            "date": now(),
        },
        smoothing=smoothing_of(session.model) if candidate.quantized else (),
    )


def input_absmax(profile: Profile) -> dict[str, float]:
    return {name: stat.input_absmax for name, stat in profile.stats.items() if stat.input_absmax is not None}


def outliers(profile: Profile) -> dict[str, tuple[int, ...]]:
    return {name: stat.outliers for name, stat in profile.stats.items() if stat.outliers is not None}
