"""What layers cost inside a whole model: a handful of measured maps corrects what was measured of each layer alone.

Alone, a kernel pays for its own call, reads its input from memory, and has no neighbours that it could be fused with; in a
model that is served, small inputs replay their calls, and activations, normalisation and sums are part of the products. One
scale and one constant for each family of schemes (the float layers, int8 weights, int8 products) account for that. They are
fitted, with what is no layer, to the milliseconds of whole models under uniform and mixed maps, by least squares of relative
errors, held to the uncorrected figures where the maps do not say otherwise.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoquant.schemes import SCHEMES, project
from autoquant.values import Group

FAMILIES = ("float", "weights", "product")
MIXED, UNIFORM = 4, 4
"""Maps that are measured, beside the one without quantization: errors on other maps do not fall with more (MiniLM, four shapes,
two base dtypes)."""
PALETTES = (1, 2, 4, 16)
"""Schemes that a mixed map draws from, beside the base dtype: maps of a search are of few schemes, or of many."""
SCALE_DEVIATION = 0.3
"""How far a scale may lie from 1, and constants, in shares of a typical layer, from 0, before the maps have said anything."""
MAP_DEVIATION = 0.03
"""Relative error of one measured map."""
LEAST_SHARE = 0.5
"""No map is said to take less than this share of the fastest one that was measured: on a busy machine the fit might."""

Layers = dict[str, str]
Table = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Correction:
    """layer → scheme → ms inside a model, and the ms of everything else."""

    layer_ms: dict[str, dict[str, float]]
    base_ms: float


def sample_maps(
    groups: Sequence[Group], schemes: Mapping[str, Sequence[str]], base: str, seed: int = 0
) -> list[Layers]:
    """No quantization, then uniform and mixed maps in turns, each once; the layers of a group have one scheme."""
    draw = random.Random(seed)
    names = sorted({name for row in schemes.values() for name in row if not SCHEMES[name].is_float})
    palettes = [draw.sample(names, min(PALETTES[number % len(PALETTES)], len(names))) for number in range(MIXED)]
    uniform = [[name] for name in draw.sample(names, min(UNIFORM, len(names)))]
    mixed = [[*palette, base] for palette in palettes]
    turns = [one for pair in itertools.zip_longest(mixed, uniform) for one in pair if one is not None]
    found: list[Layers] = []
    for palette in [[base], *turns]:
        one = _fill(groups, schemes, base, palette, draw)
        if one not in found:
            found.append(one)
    return found


def offered(rows: Table) -> dict[str, tuple[str, ...]]:
    """Layer → schemes that a map may give it, from their ms. A layer that no input reaches has no calibrated range: none."""
    return {name: tuple(row) if any(row.values()) else () for name, row in rows.items()}


def correct(base: str, alone: Table, rest: float, maps: Sequence[Layers], times: Sequence[float]) -> Correction:
    """Fit the layers' times to the times of whole models.

    Args:
        base: the base dtype.
        alone: layer → scheme → ms, measured alone; 0 for a layer that the model does not use.
        rest: ms of everything else, by subtraction.
        maps, times: whole models and their ms.
    """
    used = [name for name, row in alone.items() if max(row.values()) > 0]
    typical = float(np.median([ms for name in used for ms in alone[name].values()])) if used else 0.0
    rows = np.array([_features(alone, used, one) for one in maps])
    relative = 1 / np.asarray(times)
    prior = np.array([rest, *[1.0] * len(FAMILIES), *[0.0] * len(FAMILIES)])
    wide = [max(rest, 0.1 * float(np.mean(times))), *[SCALE_DEVIATION] * len(FAMILIES)]
    wide += [max(SCALE_DEVIATION * typical, 1e-9)] * len(FAMILIES)
    hold = MAP_DEVIATION / np.array(wide)
    matrix = np.vstack([rows * relative[:, None], np.diag(hold)])
    target = np.concatenate([np.ones(len(maps)), hold * prior])
    base_ms, *fitted = np.linalg.lstsq(matrix, target, rcond=None)[0]
    scales = dict(zip(FAMILIES, fitted[: len(FAMILIES)], strict=True))
    constants = dict(zip(FAMILIES, fitted[len(FAMILIES) :], strict=True))
    layer_ms: dict[str, dict[str, float]] = {name: dict(row) for name, row in alone.items()}
    for name in used:
        for scheme, ms in alone[name].items():
            family = family_of(scheme)
            layer_ms[name][scheme] = float(scales[family] * ms + constants[family])
        # A layer that saves its neighbours more than it costs would have less than nothing: that is the rest's, then.
        surplus = min(0.0, *layer_ms[name].values())
        layer_ms[name] = {scheme: ms - surplus for scheme, ms in layer_ms[name].items()}
        base_ms += surplus
    least = base_ms + sum(min(row.values()) for row in layer_ms.values())
    base_ms += max(0.0, LEAST_SHARE * min(times) - least)
    return Correction(layer_ms, float(base_ms))


def family_of(scheme: str) -> str:
    found = SCHEMES[scheme]
    return "float" if found.weights is None else "weights" if found.input is None else "product"


def _features(alone: Table, used: Sequence[str], layers: Mapping[str, str]) -> list[float]:
    """1, the sum of each family's times alone, and the number of its layers."""
    sums, counts = dict.fromkeys(FAMILIES, 0.0), dict.fromkeys(FAMILIES, 0.0)
    for name in used:
        family = family_of(layers[name])
        sums[family] += alone[name][layers[name]]
        counts[family] += 1
    return [1.0, *sums.values(), *counts.values()]


def _fill(
    groups: Sequence[Group],
    schemes: Mapping[str, Sequence[str]],
    base: str,
    palette: Sequence[str],
    draw: random.Random,
) -> Layers:
    found: Layers = {}
    for group in groups:
        chosen = draw.choice(palette)
        names = {layer.name: project(SCHEMES[chosen], layer.kind).name for layer in group.layers}
        fits = all(name in schemes[layer] for layer, name in names.items())
        found |= names if fits else dict.fromkeys(names, base)
    return found
