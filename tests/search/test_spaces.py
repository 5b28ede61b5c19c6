"""Search spaces: the shipped ones, and what is refused with the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from autoquant.errors import SpaceError
from autoquant.models.layers import Inventory
from autoquant.runtimes import RUNTIMES
from autoquant.schemes import SCHEMES
from autoquant.search.spaces import DEFAULT, allowed, folder, load_space, names, parse
from autoquant.values import FLOAT_DTYPES, Layer

LAYERS = (
    Layer("embed", "embedding", (10, 8)),
    Layer("visual.patch", "conv2d", (8, 12), patchify=True),
    Layer("visual.blocks.0.fc", "linear", (8, 8)),
    Layer("blocks.0.fc", "linear", (8, 8)),
    Layer("lm_head", "linear", (10, 8)),
)
INVENTORY = Inventory(LAYERS, ())
RUNTIME = RUNTIMES["torch"]()
A8 = "int8-channel-sym/a8-token"


@pytest.mark.parametrize("name", names())
def test_every_shipped_space_is_valid_and_says_what_it_is_for(name: str) -> None:
    space = load_space(name)
    assert space.name == name and len(space.description) > 20
    assert "float32" in space.base_dtypes and space.schemes
    assert len(set(space.schemes)) == len(space.schemes) and not set(space.schemes) & set(FLOAT_DTYPES)
    assert any(allowed(space, INVENTORY, RUNTIME).values())


def test_every_yaml_is_a_shipped_space_and_the_default_is_among_them() -> None:
    assert sorted(path.name for path in folder().iterdir()) == [f"{name}.yaml" for name in names()]
    assert DEFAULT in names()


def test_the_default_space_names_every_scheme_of_8_bits() -> None:
    assert set(load_space(DEFAULT).schemes) == {
        name for name, scheme in SCHEMES.items() if not scheme.is_float and not scheme.is_packed
    }


def test_a_space_of_ones_own_is_given_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"schemes": [A8]}))
    space = load_space(str(path))
    assert space.name == "mine" and space.schemes == (A8,) and space.base_dtypes == FLOAT_DTYPES


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"schemes": [A8], "scheme": []}, "unknown key 'scheme'. Did you mean 'schemes'"),
        ({"schemes": [{"a": 1}]}, "{'a': 1}' is unknown"),
        ({"schemes": ["float16"]}, "'float16' is unknown"),
        ({"schemes": [A8], "rules": [{"match": 5, "keep": "float"}]}, "'match' must be a pattern"),
        ({}, "'schemes' is missing"),
        ({"schemes": A8}, "schemes: expected a list, not str"),
        ({"schemes": ["int8-channel-sym/a8-tokens"]}, f"'int8-channel-sym/a8-tokens' is unknown. Did you mean '{A8}'"),
        ({"schemes": [A8], "base_dtypes": ["bfloat61"]}, "'bfloat61' is unknown. Did you mean 'bfloat16'"),
        ({"schemes": [A8], "rules": {"kind": "linear"}}, "rules: expected a list, not dict"),
        ({"schemes": [A8], "rules": ["linear"]}, "rule 1: expected a mapping"),
        ({"schemes": [A8], "rules": [{"kind": "embeding", "keep": "float"}]}, "'embeding' is unknown. Did you mean 'embedding'"),
        ({"schemes": [A8], "rules": [{"matches": "*", "keep": "float"}]}, "unknown key 'matches'. Did you mean 'match'"),
        ({"schemes": [A8], "rules": [{"keep": "float"}]}, "rule 1: needs 'match' or 'kind'"),
        ({"schemes": [A8], "rules": [{"match": "*"}]}, "either 'schemes' or 'keep: float'"),
        ({"schemes": [A8], "rules": [{"match": "*", "schemes": [A8], "keep": "float"}]}, "either 'schemes' or 'keep: float'"),
        ({"schemes": [A8], "rules": [{"match": "*", "keep": "int8"}]}, "'keep' can only be 'float', not 'int8'"),
        ({"schemes": [A8], "rules": [{"match": "*", "schemes": ["int8"]}]}, "rule 1: scheme 'int8' is unknown"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_place_and_the_nearest_name(value: dict, message: str) -> None:
    with pytest.raises(SpaceError) as error:
        parse(value, "mine", "mine.yaml")
    assert message in str(error.value) and str(error.value).startswith("mine.yaml")


def test_unknown_spaces_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=f"Did you mean '{DEFAULT}'"):
        load_space("int8_fp61")
    with pytest.raises(SpaceError, match="no search space file.*Shipped"):
        load_space(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("schemes: [")
    with pytest.raises(SpaceError, match="cannot be read as YAML"):
        load_space(str(tmp_path / "bad.yaml"))


def rules(*given: dict) -> dict[str, tuple[str, ...]]:
    return allowed(parse({"schemes": [A8, "int8-channel-sym"], "rules": list(given)}, "s", "s"), INVENTORY, RUNTIME)


def test_without_rules_each_layer_may_run_what_the_runtime_can() -> None:
    found = rules()
    assert found["embed"] == ("int8-channel-sym",), "an embedding has no input to quantize"
    assert found["blocks.0.fc"] == (A8, "int8-channel-sym")


def test_a_rule_fits_by_pattern_on_the_whole_name_and_by_kind() -> None:
    found = rules({"match": "visual.*", "keep": "float"}, {"kind": "embedding", "keep": "float"})
    assert {name for name, schemes in found.items() if not schemes} == {"visual.patch", "visual.blocks.0.fc", "embed"}
    both = rules({"match": "visual.*", "kind": "linear", "schemes": ["int8-tensor-sym"]})
    assert both["visual.blocks.0.fc"] == ("int8-tensor-sym",) and both["visual.patch"] == found["lm_head"]


def test_the_first_rule_that_fits_decides() -> None:
    first, second = {"match": "lm_head", "schemes": ["int8-channel-sym"]}, {"kind": "linear", "keep": "float"}
    assert rules(first, second)["lm_head"] == ("int8-channel-sym",)
    assert rules(second, first)["lm_head"] == ()


def test_a_space_that_leaves_nothing_to_choose_is_refused() -> None:
    with pytest.raises(SpaceError, match=f"leaves no layer.*--space {DEFAULT}"):
        rules({"match": "*", "keep": "float"})
