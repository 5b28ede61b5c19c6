"""Imports point one way, heavy packages have one home, every module says what it is for."""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path

import pytest

import autoquant

ROOT = Path(autoquant.__file__).parent
MODULES = {
    ".".join(("autoquant", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py" and name != "autoquant"]

RANKS = (
    {"errors"},
    {"artifacts", "memory", "values"},
    {"processes"},
    {"forkserver"},
    {"schemes"},
    {"models"},
    {"runtimes", "tasks"},
    {"evaluation", "fragility"},
    {"profile", "price", "search", "smoothing", "checkpoint", "exports", "certify", "bench", "report"},
    {"settings", "catalogue"},
    {"session"},
    {"divergence", "layer_maps", "racing", "replay", "reuse"},
    {"trial", "fresh", "measured"},
    {"finals", "power", "searching"},
    {"certification"},
    {"summary"},
    {"pipeline", "comparison"},
    {"helping"},
    {"api", "applying", "measuring", "watching"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
"""From the bottom up. A module imports what stands below it, its own package, and, among the stages, what is named here."""
BESIDE = {("certify", "exports"), ("exports", "checkpoint"), ("bench", "exports")}
"""A stage and another that it may import: an export is made from a checkpoint, and a fresh process has to load either."""
ANYWHERE = {"lazy", ""}
"""The package itself serves its public names lazily."""

HOMES = {
    "optuna": "search",
    "datasets": "tasks",
    "typer": "cli commands",
    "click": "cli",
    "jinja2": "report",
    "compressed_tensors": "checkpoint",
    "PIL": "tasks",
    "openvino": "runtimes",
    "onnx": "exports",
    "onnxruntime": "exports",
    "onnxscript": "exports",
}


@functools.cache
def imports(path: Path) -> set[str]:
    """Absolute names of all that a module imports, inside functions too; not what only a type checker reads."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    skipped = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            assert node.module is not None
            nested = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in nested if name in MODULES} or {node.module}
    return found


def home(name: str) -> str:
    """`autoquant.search.study` → `search`."""
    return [*name.split("."), ""][1]


RANK = {part: number for number, parts in enumerate(RANKS) for part in parts}


def test_every_module_has_a_place() -> None:
    assert {home(name) for name in MODULES} == RANK.keys() | ANYWHERE


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    mine = home(name)
    if mine in ANYWHERE:
        return
    for other in {home(found) for found in imports(MODULES[name]) if found.split(".")[0] == "autoquant"}:
        allowed = other in ANYWHERE or other == mine or RANK[other] < RANK[mine] or (mine, other) in BESIDE
        assert allowed, f"{name} imports autoquant.{other}, which does not stand below it"


def test_values_and_schemes_stand_by_themselves() -> None:
    for name, path in MODULES.items():
        own = {home(found) for found in imports(path) if found.startswith("autoquant.")} - {home(name)}
        if home(name) == "values":
            assert own <= {"errors"} and not {"torch", "numpy"} & imports(path)
        if home(name) == "schemes":
            assert own <= {"values", "errors"}


@pytest.mark.parametrize("package", HOMES)
def test_a_heavy_package_is_imported_in_one_place(package: str) -> None:
    found = {home(name) for name, path in MODULES.items() if package in {i.split(".")[0] for i in imports(path)}}
    assert found <= set(HOMES[package].split())


def test_nothing_unpickles_or_loads_yaml_unsafely() -> None:
    for path in MODULES.values():
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        if path.match("graph/write.py"):  # runs the function that it has just written, as torch.fx does
            calls.remove("exec")
        unsafe = {"pickle.load", "pickle.loads", "torch.load", "yaml.load", "yaml.unsafe_load", "eval", "exec"}
        assert not calls & unsafe, path.name


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf8"))), f"{name} has no docstring"


@pytest.mark.parametrize("name", ["autoquant", *PACKAGES])
def test_public_names_exist_once_and_in_order(name: str) -> None:
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert len(set(public)) == len(public) and all(hasattr(module, item) for item in public)
    assert all(not item.startswith("_") or item == "__version__" for item in public)
