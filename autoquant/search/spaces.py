"""Search spaces: a YAML that says which schemes may be used where. Unknown keys and names are refused."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant import artifacts
from autoquant.errors import CheckpointError, SpaceError, nearest, reject_unknown
from autoquant.models.layers import Inventory
from autoquant.runtimes.base import Runtime
from autoquant.schemes import SCHEMES
from autoquant.values import FLOAT_DTYPES, KINDS, Layer

DEFAULT = "int8_fp16"
QUANTIZED = tuple(name for name, scheme in SCHEMES.items() if not scheme.is_float)
"""What a space may list as schemes; float dtypes are listed as base dtypes."""


@dataclass(frozen=True)
class Rule:
    """The first rule that fits a layer decides what it may run.

    Attributes:
        match: shell pattern on the layer's name, `visual.*`; None fits all.
        kind: one of `KINDS`; None fits all.
        schemes: allowed besides the base dtype; empty keeps the layer in the base dtype.
    """

    match: str | None
    kind: str | None
    schemes: tuple[str, ...]

    def fits(self, layer: Layer) -> bool:
        named = self.match is None or fnmatch.fnmatchcase(layer.name, self.match)
        return named and (self.kind is None or layer.kind == self.kind)


@dataclass(frozen=True)
class Space:
    name: str
    description: str
    base_dtypes: tuple[str, ...]
    schemes: tuple[str, ...]
    rules: tuple[Rule, ...] = ()


def folder() -> Path:
    """Where the shipped spaces are: inside an installed package, or beside the package in a checkout."""
    installed = Path(__file__).parents[1] / "search_spaces"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "search_spaces"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.yaml"))


def load_space(name_or_path: str) -> Space:
    """A shipped space by name, or a YAML file by path.

    Raises:
        SpaceError: no such space, an unknown key, scheme, dtype or layer kind, a rule that says nothing.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = folder() / f"{name_or_path}.yaml"
        if not path.is_file():
            raise SpaceError(
                f"Unknown search space '{name_or_path}'.{nearest(name_or_path, names())} Or the path of a YAML file."
            )
    elif not path.is_file():
        raise SpaceError(f"There is no search space file {path}. Shipped spaces: {', '.join(names())}.")
    try:
        value = artifacts.read_yaml(path)
    except CheckpointError as error:
        raise SpaceError(str(error)) from error
    return parse(value, path.stem, str(path))


def parse(value: Mapping[str, Any], name: str, where: str) -> Space:
    reject_unknown(value, ("description", "base_dtypes", "schemes", "rules"), where, SpaceError)
    if "schemes" not in value:
        raise SpaceError(f"{where}: 'schemes' is missing: list what a layer may run besides the base dtype.")
    rules = []
    for number, item in enumerate(_list(value.get("rules", []), f"{where}: rules")):
        at = f"{where}: rule {number + 1}"
        if not isinstance(item, dict):
            raise SpaceError(f"{at}: expected a mapping with 'match' or 'kind', and 'schemes' or 'keep: float'.")
        reject_unknown(item, ("match", "kind", "schemes", "keep"), at, SpaceError)
        if not {"match", "kind"} & set(item) or ("schemes" in item) == ("keep" in item):
            raise SpaceError(f"{at}: needs 'match' or 'kind', and either 'schemes' or 'keep: float'.")
        if "keep" in item and item["keep"] != "float":
            raise SpaceError(f"{at}: 'keep' can only be 'float', not '{item['keep']}'.")
        if not isinstance(item.get("match", ""), str):
            raise SpaceError(f"{at}: 'match' must be a pattern on layer names, not {item['match']!r}.")
        if item.get("kind") is not None:
            _known([item["kind"]], KINDS, f"{at}: kind")
        schemes = _known(_list(item.get("schemes", []), f"{at}: schemes"), QUANTIZED, f"{at}: scheme")
        rules.append(Rule(item.get("match"), item.get("kind"), schemes))
    return Space(
        name=name,
        description=str(value.get("description", "")),
        base_dtypes=_known(
            _list(value.get("base_dtypes", list(FLOAT_DTYPES)), f"{where}: base_dtypes"),
            FLOAT_DTYPES,
            f"{where}: dtype",
        ),
        schemes=_known(_list(value["schemes"], f"{where}: schemes"), QUANTIZED, f"{where}: scheme"),
        rules=tuple(rules),
    )


def allowed(space: Space, inventory: Inventory, runtime: Runtime) -> dict[str, tuple[str, ...]]:
    """Layer → names of the non-base schemes that the space allows and the runtime can run on it.

    Raises:
        SpaceError: nothing is left to choose for any layer.
    """
    found = {}
    for layer in inventory.layers:
        rule = next((rule for rule in space.rules if rule.fits(layer)), None)
        schemes = space.schemes if rule is None else rule.schemes
        usable = [name for name in schemes if runtime.supports(layer, SCHEMES[name]) is None]
        found[layer.name] = tuple(dict.fromkeys(usable))
    if not any(found.values()):
        raise SpaceError(
            f"Search space '{space.name}' leaves no layer of this model anything to choose. Try --space {DEFAULT}."
        )
    return found


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise SpaceError(f"{where}: expected a list, not {type(value).__name__}.")
    return value


def _known(values: Sequence[Any], valid: Any, where: str) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str) or value not in valid:
            raise SpaceError(f"{where} '{value}' is unknown.{nearest(str(value), valid)}")
    return tuple(values)
