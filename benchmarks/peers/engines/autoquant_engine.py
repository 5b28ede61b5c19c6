"""autoquant: a checkpoint that a search shipped, or one uniform map, so that there is always a row."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.engines.base import Engine, Served
from benchmarks.peers.engines.torch_engine import TorchServed, import_model, prepare
from benchmarks.peers.models import Shape, Source

SCHEME, BASE = "int8-channel-sym/a8-token", "bfloat16"


@dataclass(frozen=True)
class AutoquantUniform(Engine):
    """The strictest scheme that every layer can run, everywhere: what no search was needed for."""

    packages: ClassVar[dict[str, str]] = {"autoquant": "-e .", "torch": "torch", "transformers": "transformers"}

    @property
    def artefact(self) -> str:
        return "autoquant-uniform"

    def warm_imports(self, source: Source) -> None:
        import autoquant.checkpoint  # noqa: F401 - the package itself imports nothing yet

        super().warm_imports(source)
        import_model(source, compiled=False)

    def build(self, source: Source, kind: str, folder: Path) -> None:
        import autoquant
        from autoquant.models.layers import inspect
        from autoquant.models.loading import load_model
        from autoquant.runtimes import TorchRuntime
        from autoquant.schemes import SCHEMES, project
        from autoquant.values import LayerMap

        layers, runtime = {}, TorchRuntime()
        for layer in inspect(load_model(str(source.folder), source.model.auto_class).model).layers:
            # A tied head shares the embedding's tensor, so it shares the embedding's scheme.
            scheme = SCHEMES[layers[layer.tied_to]] if layer.tied_to else project(SCHEMES[SCHEME], layer.kind)
            layers[layer.name] = scheme.name if runtime.supports(layer, scheme) is None else BASE
        autoquant.apply(source.folder, LayerMap(layers=layers, base_dtype=BASE), folder)

    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        import autoquant

        prepare(threads, compiled=False)
        return TorchServed(autoquant.load(folder), source)


@dataclass(frozen=True)
class AutoquantFolder(AutoquantUniform):
    """A checkpoint folder, as it is."""

    checkpoint: Path = Path()

    @property
    def artefact(self) -> str:
        return f"autoquant-{self.checkpoint.resolve().as_posix().strip('/').replace('/', '-')}"

    def build(self, source: Source, kind: str, folder: Path) -> None:
        shutil.copytree(self.checkpoint, folder, dirs_exist_ok=True)
