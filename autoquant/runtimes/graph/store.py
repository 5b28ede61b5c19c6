"""Captured graphs in the user's cache folder, beside the compiled kernels: capturing takes seconds and tens of megabytes, and
the same model is loaded by many processes.

A file belongs to one architecture, as it is configured, in one kind of call, with these versions of torch, transformers and of
the code here. It serves every layer map, as the graph does. For each map that was compared with the model as it is written,
it says so: such a map is not compared again.
"""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from autoquant import artifacts
from autoquant.errors import AutoquantError
from autoquant.runtimes.graph.capture import Captured, node_of
from autoquant.runtimes.graph.plain import UnstorableError, from_plain, to_plain
from autoquant.runtimes.native.build import cap, processor

log = logging.getLogger(__name__)
CODE = ("transformers.", "torch.nn.", "autoquant.")
"""Packages whose modules are what their versions say; the code of any other may have changed since."""
IRRELEVANT = {"name_or_path", "is_quantized", "quantization_method"}
UNREAL = {
    "_name_or_path",
    "quantization_config",
    "transformers_version",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
}
"""Of a config: where it came from and what it is called."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def folder() -> Path:
    return artifacts.cache_folder() / "graphs"


@dataclass(frozen=True)
class Entry:
    """The file of one model's graph for one kind of call."""

    path: Path
    key: str
    layer_map: str

    def exists(self) -> bool:
        return self.path.is_file()

    def read(self, model: nn.Module) -> tuple[Captured, bool] | None:
        """The graph, and whether it is known to compute what the model does under its layer map; None: there is none."""
        if not self.exists():
            return None
        try:
            data = artifacts.read_json(self.path)
            if data["key"] != self.key:
                raise ValueError("it is of another model or version")
            return from_plain(data["graph"], model), self.layer_map in data["checked"]
        except Exception as error:  # whatever a damaged file leads to: the graph is captured again
            log.warning(
                "The stored graph %s is not used and captured anew: %s: %s", self.path, type(error).__name__, error
            )
            return None

    def write(self, graph: dict[str, Any]) -> None:
        """Store a graph that computes what the model does under its layer map."""
        checked = {self.layer_map}
        try:
            if self.exists():
                found = artifacts.read_json(self.path)
                checked |= set(found["checked"]) if found["key"] == self.key and found["graph"] == graph else set()
        except (AutoquantError, KeyError, TypeError):
            pass  # a damaged file is replaced
        try:
            content = {
                "schema_version": artifacts.SCHEMA_VERSION,
                "key": self.key,
                "checked": sorted(checked),
                "graph": graph,
            }
            artifacts.write_text(self.path, json.dumps(content, separators=(",", ":"), allow_nan=False))
        except (AutoquantError, ValueError) as error:
            log.info("The graph was not stored: %s", error)


def entry(model: nn.Module, signature: Any) -> Entry | None:
    """Where the graph of this kind of call is stored; None of a model whose code may have changed since, or that has hooks.

    Args:
        signature: plain values that say which arguments there are, of which dtypes and, as far as they are fixed, shapes.
    """
    about = None if torch.is_autocast_enabled("cpu") else _about(model)
    if about is None:
        return None
    made_from = [repr(signature), about, _versions()]
    key = artifacts.fingerprint(made_from)
    return Entry(folder() / f"{key}.json", key, artifacts.fingerprint(_schemes(model)))


def plain_of(captured: Captured) -> dict[str, Any] | None:
    """The graph as plain data, or None of one that cannot be written so."""
    try:
        return to_plain(captured)
    except UnstorableError as error:
        log.info("The graph cannot be stored: %s", error)
        return None


def _about(model: nn.Module) -> list[Any] | None:
    """All that a forward pass of installed code can depend on, but for the layers that are opaque to it."""
    own: Any = getattr(model, "config", None)
    if not hasattr(own, "to_dict"):
        return None
    config = {key: value for key, value in own.to_dict().items() if key not in UNREAL}
    found: list[Any] = [config, str(getattr(own, "_attn_implementation", None))]
    for name, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if not kind.startswith(CODE) or any(getattr(module, hooks) for hooks in HOOKS):
            return None
        if name and "forward" in module.__dict__:
            return None
        opaque = node_of(name, module)
        if opaque is not None:
            found.append(repr(opaque))
            continue
        plain = {
            key: getattr(value, "__qualname__", repr(value))
            for key, value in module.__dict__.items()
            if not key.startswith("_") and key not in IRRELEVANT and _is_plain(value)
        }
        tensors = [
            (key, str(value.dtype), list(value.shape))
            for key, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None
        ]
        found.append([name, kind, plain, tensors])
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype) or hasattr(value, "__qualname__")


def _schemes(model: nn.Module) -> list[str]:
    """What each layer runs: the fusions of a lowered graph follow from it."""
    return [
        f"{name} {getattr(module, 'scheme_name', None) or module.weight.dtype}"
        for name, module in model.named_modules()
        if node_of(name, module) is not None
    ]


@functools.cache
def _versions() -> list[str]:
    """Whatever else the graph, or whether it computes what the model does, may depend on."""
    here = Path(__file__).parents[1]
    code = [file.read_bytes().hex() for file in sorted([*here.rglob("*.py"), *here.rglob("*.[ch]")])]
    return [torch.__version__, transformers.__version__, processor(), cap(), artifacts.fingerprint(code)]
