"""bitsandbytes' 8-bit linears through transformers, saved and loaded as transformers does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.engines.base import Engine, Served
from benchmarks.peers.engines.torch_engine import TorchServed, import_model, open_torch, prepare
from benchmarks.peers.models import Shape, Source


@dataclass(frozen=True)
class Bitsandbytes(Engine):
    packages: ClassVar[dict[str, str]] = {
        "torch": "torch",
        "transformers": "transformers",
        "bitsandbytes": "bitsandbytes",
    }

    @property
    def artefact(self) -> str:
        return "bitsandbytes-int8"

    def warm_imports(self, source: Source) -> None:
        super().warm_imports(source)
        import_model(source, compiled=False)

    def build(self, source: Source, kind: str, folder: Path) -> None:
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(load_in_8bit=True)
        model = open_torch(source.folder, source, "bfloat16", quantization_config=quantization, device_map="cpu")
        model.save_pretrained(folder)

    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        prepare(threads, compiled=False)
        return TorchServed(open_torch(folder, source, "bfloat16", device_map="cpu"), source)
