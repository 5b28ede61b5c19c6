"""Keep `import autoquant` and `autoquant --help` light: torch and transformers take seconds to import.

Public names are imported when they are first asked for, and the checkpoint format is registered with transformers when
transformers imports the base of its models (at once if it already has).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

MODELS = "transformers.modeling_utils"


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """While open, nothing looks for garbage: what is imported is none, and that takes a fifth of importing's time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def serve(package: str, names: Mapping[str, str]) -> None:
    """Make public name → module available as attributes of `package`, each imported on first use (as PEP 562 does).

    Some names are also those of subpackages (`autoquant.search` is a function and a folder). The import system would put
    the folder in place of the function; this keeps the function, and `from autoquant.search import …` works as ever.
    """

    class Package(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in names:
                raise AttributeError(f"module '{package}' has no attribute '{name}'")
            with importing():
                value = getattr(importlib.import_module(names[name]), name)
            self.__dict__[name] = value
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            if not (name in names and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *names})

    sys.modules[package].__class__ = Package


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls `then` once, right after `module` has been imported."""

    def __init__(self, module: str, then: Callable[[], None]) -> None:
        self.module, self.then = module, then

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute, then = spec.loader.exec_module, self.then

            def exec_module(module: ModuleType) -> None:
                execute(module)
                then()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def after_import(module: str, then: Callable[[], None]) -> None:
    """Call `then` when `module` is imported; now, if it has been."""
    if module in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _AfterImport(module, then))
