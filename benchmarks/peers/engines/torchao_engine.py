"""torchao's int8 configurations, compiled as its documentation asks for.

Saved as a pickled module and not through transformers: with weights from a safetensors file torch's kernel for int8 weights
ends the process (torch 2.13, torchao 0.18), probably because these are not aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.engines.base import Engine, Served
from benchmarks.peers.engines.torch_engine import PICKLE, TorchServed, import_model, open_torch, prepare
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
        import torch
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

        model = open_torch(source.folder, source, self.dtype)
        quantize_(model, Int8DynamicActivationInt8WeightConfig() if self.how == "dynamic" else Int8WeightOnlyConfig())
        for module in model.modules():
            module.__dict__.pop("extra_repr", None)  # a partial that cannot be pickled
        torch.save(model, folder / PICKLE)

    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        import torch

        prepare(threads, compiled=True)
        model = torch.load(folder / PICKLE, weights_only=False)
        return TorchServed(model, source, compiled=True, dynamic=None if shape is None else False)
