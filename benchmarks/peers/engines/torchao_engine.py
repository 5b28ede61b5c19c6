"""torchao's int8 configurations through transformers, compiled as torchao's documentation asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.engines.base import Engine, Served
from benchmarks.peers.engines.torch_engine import TorchServed, import_model, open_torch, prepare
from benchmarks.peers.models import Shape, Source


@dataclass(frozen=True)
class TorchAO(Engine):
    """`how`: `dynamic` (activations per token at run time) or `weights` (weights only)."""

    how: str
    dtype: str
    packages: ClassVar[dict[str, str]] = {"torch": "torch", "transformers": "transformers", "torchao": "torchao"}

    @property
    def artefact(self) -> str:
        return f"torchao-{self.how}-{self.dtype}"

    def warm_imports(self, source: Source) -> None:
        super().warm_imports(source)
        import_model(source, compiled=True)

    def build(self, source: Source, kind: str, folder: Path) -> None:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        config = Int8DynamicActivationInt8WeightConfig() if self.how == "dynamic" else Int8WeightOnlyConfig()
        open_torch(
            source.folder, source, self.dtype, quantization_config=TorchAoConfig(config), device_map="cpu"
        ).save_pretrained(folder)

    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        prepare(threads, compiled=True)
        model = open_torch(folder, source, self.dtype, device_map="cpu")
        return TorchServed(model, source, compiled=True, dynamic=None if shape is None else False)
