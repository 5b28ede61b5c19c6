"""Format `autoquant`: every scheme on every kind of layer, for any torch module; read by autoquant only.

The config names each layer and its scheme. Transformers reads it once autoquant is imported (`hf.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from autoquant.artifacts import SCHEMA_VERSION
from autoquant.checkpoint.format import Format, StoredScheme
from autoquant.checkpoint.outliers import read, written
from autoquant.errors import CheckpointError, nearest
from autoquant.schemes import SCHEMES
from autoquant.values import Layer, Scheme

RAW_CONFIG = "autoquant.json"
"""Takes the place of config.json for a module that is no transformers model."""


class Autoquant(Format):
    name: ClassVar[str] = "autoquant"
    weights_name: ClassVar[str] = "autoquant.safetensors"

    def cannot_hold(self, layer: Layer, scheme: Scheme, base_dtype: str) -> str | None:
        return None

    def write(
        self, model: nn.Module, schemes: Mapping[str, Scheme], base_dtype: str, outliers: Mapping[str, Sequence[int]]
    ) -> dict[str, Any]:
        return {
            "quant_method": self.name,
            "schema_version": SCHEMA_VERSION,
            "base_dtype": base_dtype,
            "base_model_prefix": str(getattr(model, "base_model_prefix", "")),
            "layers": {name: scheme.name for name, scheme in schemes.items() if scheme.dtype != base_dtype},
            **written(schemes, outliers),
        }

    def read(self, config: Mapping[str, Any], model: nn.Module, where: str) -> dict[str, StoredScheme]:
        version = config.get("schema_version", SCHEMA_VERSION)
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise CheckpointError(
                f"{where} has schema version {version!r}; this autoquant reads up to {SCHEMA_VERSION}. "
                "Upgrade autoquant."
            )
        layers = config.get("layers")
        if not isinstance(layers, dict):
            raise CheckpointError(f"{where}: 'layers' must map layer names to schemes. Write the checkpoint again.")
        outliers = read(config, where)
        known = {name for name, _ in model.named_modules()}
        prefix = str(config.get("base_model_prefix") or "")
        found = {}
        for name, scheme in layers.items():
            if scheme not in SCHEMES:
                raise CheckpointError(
                    f"{where}: layer '{name}' has the unknown scheme '{scheme}'.{nearest(scheme, SCHEMES)}"
                )
            # The same folder opened with another Auto class has the base model's prefix or has it not.
            names = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
            here = next((candidate for candidate in names if candidate in known), None)
            if here is not None:
                found[here] = StoredScheme(SCHEMES[scheme], outliers.get(name, ()))
        return found
