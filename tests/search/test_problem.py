"""Profile and price put together as plain data."""

from __future__ import annotations

import itertools

import pytest

from autoquant.schemes import SCHEMES
from autoquant.search import starts
from autoquant.search.problem import FLOAT, OBJECTIVES, Problem, make_problem, saving
from autoquant.search.starts import starting_maps
from autoquant.values import Group, Layer, Price, Profile
from tests import synthetic

EMBED = Layer("embed", "embedding", (10, 8))
HEAD = Layer("head", "linear", (10, 8), tied_to="embed")
BODY = Layer("body", "linear", (8, 8))
GROUPS = (Group("embed", (EMBED, HEAD)), Group("body", (BODY,)))
W, A = "int8-channel-sym", "int8-channel-sym/a8-token"
ALLOWED = {"embed": (W,), "head": (W, A), "body": (W, A, "int8-tensor-sym")}


def table(first: float, base: str) -> dict[str, dict[str, float]]:
    names = (base, W, A, "int8-tensor-sym")
    return {
        layer.name: {name: first + 10 * i + j for j, name in enumerate(names)}
        for i, layer in enumerate((EMBED, HEAD, BODY))
    }


def problem(objective: str = "balanced") -> Problem:
    scores = {name: {W: 1.0, A: 2.0, "int8-tensor-sym": 3.0} for name in ("embed", "head", "body")}
    profile = Profile(scores, {}, {}, "fisher", 1, 1.0, 1.0)
    sizes = {
        base: {name: {k: int(v) for k, v in row.items()} for name, row in table(500, base).items()}
        for base in ("float32", "bfloat16")
    }
    price = Price(
        layer_bytes=sizes, other_bytes={"float32": 40, "bfloat16": 20},
        layer_ms={base: table(100, base) for base in ("float32", "bfloat16")}, layer_ms_noise={},
        base_ms={"float32": 4.0, "bfloat16": 2.0}, model_ms={"float32": 400.0, "bfloat16": 300.0}, shape={},
        threads=1, hardware="", runtime="torch", seconds=0.0,
    )  # fmt: skip
    return make_problem(GROUPS, ALLOWED, profile, price, objective)


def test_a_group_may_choose_what_all_its_layers_may_and_an_embedding_takes_the_weight_part() -> None:
    found = problem()
    assert found.options == ((FLOAT, W, A), (FLOAT, W, A, "int8-tensor-sym"))
    assert found.layers("bfloat16", (2, 3)) == {"embed": W, "head": A, "body": "int8-tensor-sym"}
    assert found.layers("bfloat16", (0, 0)) == dict.fromkeys(("embed", "head", "body"), "bfloat16")


def test_a_group_may_not_choose_what_one_of_its_layers_may_not() -> None:
    narrow = {**ALLOWED, "embed": ()}
    scores = {name: {W: 1.0, A: 2.0, "int8-tensor-sym": 3.0} for name in ("embed", "head", "body")}
    base = problem()
    price = Price(
        layer_bytes={"float32": {k: {n: int(x) for n, x in v.items()} for k, v in table(500, "float32").items()}},
        other_bytes={"float32": 40}, layer_ms={"float32": table(100, "float32")}, layer_ms_noise={},
        base_ms={"float32": 4.0}, model_ms={"float32": 400.0}, shape={}, threads=1, hardware="", runtime="", seconds=0.0,
    )  # fmt: skip
    found = make_problem(GROUPS, narrow, Profile(scores, {}, {}, "fisher", 1, 1.0, 1.0), price, "latency")
    assert found.options[0] == (FLOAT,) and found.options[1] == base.options[1]


def test_costs_and_scores_add_up_over_the_layers_of_a_group() -> None:
    found = problem()
    assert found.score((2, 1)) == (1.0 + 2.0) + 1.0
    assert found.score((0, 0)) == 0
    assert found.total_ms("float32", (0, 1)) == 4 + (100 + 110) + 121
    assert found.total_bytes("bfloat16", (2, 3)) == 20 + (501 + 512) + 523
    assert found.reference_ms == 400 and found.reference_bytes == 40 + 500 + 510 + 520


@pytest.mark.parametrize(("objective", "expected"), [("latency", 4.0), ("memory", 9.0), ("balanced", 6.0)])
def test_savings(objective: str, expected: float) -> None:
    assert saving(objective, 4.0, 9.0) == expected and objective in OBJECTIVES
    assert problem(objective).saving(400.0, problem().reference_bytes) == 1


def test_a_uniform_map_runs_its_scheme_wherever_it_may() -> None:
    found = problem()
    assert found.uniform(A) == (2, 2)
    assert found.uniform("int8-tensor-sym") == (0, 3)


def test_the_starting_maps_are_all_float_maps_and_the_front_of_uniform_ones() -> None:
    found = synthetic.make(3)
    maps = starting_maps(found)
    assert [(base, choice) for _, base, choice in maps[:2]] == [("float32", (0, 0, 0)), ("bfloat16", (0, 0, 0))]
    uniform = maps[2:]
    assert uniform and len({(base, choice) for _, base, choice in maps}) == len(maps)
    gains = [found.saving(found.total_ms(b, c), found.total_bytes(b, c)) for _, b, c in uniform]
    scores = [found.score(c) for _, _, c in uniform]
    assert gains == sorted(gains, reverse=True) and all(x > y for x, y in itertools.pairwise(scores))


def test_of_uniform_maps_that_timings_cannot_tell_apart_the_safest_is_evaluated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that the few that are evaluated lie apart: three of one speed would leave out what is a little slower and much safer.
    What lies apart from the fastest counts by itself, however near it is to another.
    """
    names = [name for name in SCHEMES if "/" in name][:6]
    found = synthetic.make(3, bases=("float32",), schemes=tuple(names))
    maps = [found.uniform(name) for name in names]
    gain = dict(zip(maps, (5.0, 4.95, 4.92, 4.88, 4.0, 2.0), strict=True))
    score = dict(zip(maps, (9.0, 8.0, 3.0, 2.5, 2.0, 1.0), strict=True))
    monkeypatch.setattr(Problem, "total_ms", lambda self, base, choice: gain[choice])
    monkeypatch.setattr(Problem, "saving", lambda self, ms, size: ms)
    monkeypatch.setattr(Problem, "score", lambda self, choice: score[choice])
    assert [gain[choice] for _, _, choice in starting_maps(found)[1:]] == [4.92, 4.88, 4.0, 2.0]


def test_the_safest_uniform_map_is_evaluated_however_many_save_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = synthetic.make(3)
    every = [choice for _, _, choice in starting_maps(found)[2:]]
    monkeypatch.setattr(starts, "UNIFORM_LIMIT", 2)
    two = [choice for _, _, choice in starting_maps(found)[2:]]
    assert len(every) > 2 and two == [every[0], min(every, key=found.score)]


def test_of_many_uniform_maps_those_are_evaluated_that_lie_evenly_between_the_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [name for name in SCHEMES if "/" in name][:9]
    found = synthetic.make(3, bases=("float32",), schemes=tuple(names))
    maps = [found.uniform(name) for name in names]
    monkeypatch.setattr(
        Problem, "total_ms", lambda self, base, choice: 1.2 ** -maps.index(choice) if choice in maps else 1.0
    )
    monkeypatch.setattr(Problem, "saving", lambda self, ms, size: ms)
    monkeypatch.setattr(Problem, "score", lambda self, choice: 10.0 - maps.index(choice) if choice in maps else 0.0)
    assert [maps.index(choice) for _, _, choice in starting_maps(found)[1:]] == [0, 3, 5, 8]
