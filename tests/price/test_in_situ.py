"""Measured maps correct what layers cost alone: a made-up machine on which calls are cheaper inside a model."""

from __future__ import annotations

import numpy as np
import pytest

from autoquant.models.layers import groups
from autoquant.price.in_situ import MIXED, UNIFORM, correct, family_of, sample_maps
from autoquant.values import Group, Layer

LAYERS = tuple(Layer(f"block.{number}.linear", "linear", (8, 8)) for number in range(12))
EMBEDDING = Layer("embedding", "embedding", (8, 8))
HEAD = Layer("head", "linear", (8, 8), tied_to="embedding")
UNUSED = Layer("pooler", "linear", (8, 8))
SCHEMES = ("int8-channel-sym", "int8-tensor-sym", "int8-channel-sym/a8-token", "int8-channel-sym/a8-static")
ALLOWED = {
    **dict.fromkeys((layer.name for layer in (*LAYERS, HEAD, UNUSED)), SCHEMES),
    EMBEDDING.name: ("int8-channel-sym",),
}
EVERY = (*LAYERS, EMBEDDING, HEAD, UNUSED)
GROUPS = groups(EVERY)
ALONE = {"float32": 1.0, "int8-channel-sym": 1.5, "int8-tensor-sym": 1.4, "int8-channel-sym/a8-token": 0.6,
         "int8-channel-sym/a8-static": 0.5}  # fmt: skip
FACTOR = {"float": 1.1, "weights": 0.9, "product": 0.5}
TAKEN = {"float": 0.0, "weights": -0.2, "product": -0.2}
"""What a kernel alone pays for its call, and what it saves its neighbours."""


def alone() -> dict[str, dict[str, float]]:
    found = {layer.name: {name: ALONE[name] for name in ("float32", *ALLOWED[layer.name])} for layer in EVERY}
    return found | {UNUSED.name: dict.fromkeys(found[UNUSED.name], 0.0)}


def truth(layers: dict[str, str]) -> float:
    used = [scheme for name, scheme in layers.items() if name != UNUSED.name]
    return 5.0 + sum(FACTOR[family_of(scheme)] * ALONE[scheme] + TAKEN[family_of(scheme)] for scheme in used)


def test_maps_to_measure_are_different_and_possible() -> None:
    maps = sample_maps(GROUPS, ALLOWED, "float32")
    assert set(maps[0].values()) == {"float32"}
    assert UNIFORM / 2 < len(maps) <= 1 + MIXED + UNIFORM
    assert len({tuple(one.items()) for one in maps}) == len(maps)
    for one in maps:
        assert all(scheme in ("float32", *ALLOWED[name]) for name, scheme in one.items())
        assert one[HEAD.name].split("/")[0] == one[EMBEDDING.name], "a tied weight is quantized once"
    assert maps == sample_maps(GROUPS, ALLOWED, "float32"), "the same every time"


def test_layers_that_share_a_choice_share_it_in_the_maps_measured() -> None:
    """Joined to one product they cost less than apart, and are to be priced as they will run."""
    pairs = [Group(str(number), LAYERS[number : number + 2]) for number in range(0, len(LAYERS), 2)]
    maps = sample_maps([*pairs, *GROUPS[len(LAYERS) :]], ALLOWED, "float32")
    assert all(one[a.name] == one[b.name] for one in maps for a, b in (pair.layers for pair in pairs))
    assert any(len({one[pair.layers[0].name] for pair in pairs}) > 1 for one in maps)


def test_maps_that_were_not_measured_are_predicted() -> None:
    maps = sample_maps(GROUPS, ALLOWED, "float32")
    found = correct("float32", alone(), 2.0, maps, [truth(one) for one in maps])
    unseen = sample_maps(GROUPS, ALLOWED, "float32", seed=1)[1:]

    def error(layer_ms: dict[str, dict[str, float]], rest: float) -> float:
        predicted = [rest + sum(layer_ms[name][scheme] for name, scheme in one.items()) for one in unseen]
        return float(np.mean([abs(p / truth(one) - 1) for p, one in zip(predicted, unseen, strict=True)]))

    assert error(alone(), 2.0) > 0.1
    assert error(found.layer_ms, found.base_ms) < 0.01


def test_no_layer_costs_less_than_nothing_and_an_unused_one_costs_nothing() -> None:
    maps = sample_maps(GROUPS, ALLOWED, "float32")
    found = correct("float32", alone(), 2.0, maps, [truth(one) for one in maps])
    assert all(ms >= 0 for row in found.layer_ms.values() for ms in row.values())
    assert set(found.layer_ms[UNUSED.name].values()) == {0.0}
    assert found.layer_ms.keys() == alone().keys()


@pytest.mark.parametrize("seed", range(8))
def test_on_a_busy_machine_no_map_takes_less_than_nothing(seed: int) -> None:
    """A kernel that was kept waiting reads many times its time; predictions below zero ended a search with an error."""
    draw = np.random.default_rng(seed)
    row = {
        name: {scheme: ms * draw.choice([1, 1, 1, 30]) for scheme, ms in row.items()} for name, row in alone().items()
    }
    maps = sample_maps(GROUPS, ALLOWED, "float32")
    times = [truth(one) * draw.choice([1.0, 1.0, 4.0]) for one in maps]
    found = correct("float32", row, 2.0, maps, times)
    least = found.base_ms + sum(min(own.values()) for own in found.layer_ms.values())
    assert least >= 0.5 * min(times) - 1e-9


def test_times_that_agree_are_left_alone() -> None:
    maps = sample_maps(GROUPS, ALLOWED, "float32")
    whole = [2.0 + sum(alone()[name][scheme] for name, scheme in one.items()) for one in maps]
    found = correct("float32", alone(), 2.0, maps, whole)
    for name, row in alone().items():
        assert found.layer_ms[name] == pytest.approx(row, abs=0.02)
