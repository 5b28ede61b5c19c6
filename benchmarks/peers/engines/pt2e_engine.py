"""torchao's export path (PT2E) with the quantizer made for Inductor on x86, compiled, the rest in bfloat16 by autocast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.engines.base import Engine, Round, Served, UnsupportedError
from benchmarks.peers.engines.torch_engine import import_model, prepare
from benchmarks.peers.models import Arrays, Shape, Source

FILE = "model.pt2"


@dataclass(frozen=True)
class Pt2e(Engine):
    """`dynamic`: activation ranges at run time; otherwise calibrated. Both per tensor, weights per channel."""

    dynamic: bool
    packages: ClassVar[dict[str, str]] = {"torch": "torch", "transformers": "transformers", "torchao": "torchao"}

    @property
    def artefact(self) -> str:
        return f"pt2e-{'dynamic' if self.dynamic else 'static'}"

    def warm_imports(self, source: Source) -> None:
        super().warm_imports(source)
        import_model(source, compiled=True)

    def build(self, source: Source, kind: str, folder: Path) -> None:
        import torch
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        from benchmarks.peers.engines.export import traceable, varying

        if kind == "decode":
            raise UnsupportedError("the quantizer exports one forward pass, not a cache")
        module, inputs = traceable(source, kind)
        if getattr(module.model, "pooler", None) is not None:
            module.model.pooler = None  # nothing reads it, and the quantizer trips on it
        shapes = varying(source, len(inputs))
        exported = torch.export.export(module, inputs, dynamic_shapes=shapes).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=self.dynamic))
        prepared = prepare_pt2e(exported, quantizer)
        with torch.no_grad():
            for row in source.calibration():
                prepared(*(torch.from_numpy(row[name]) for name in source.model.inputs))
        converted = convert_pt2e(prepared)
        # The exported module takes its inputs one by one, where the first one took them as *inputs.
        torch.export.save(torch.export.export(converted, inputs, dynamic_shapes=shapes[0]), folder / FILE)

    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        import torch

        prepare(threads, compiled=True)
        module = torch.export.load(folder / FILE).module()
        return Pt2eServed(torch.compile(module, dynamic=None if shape is None else False), source)


class Pt2eServed(Served):
    def __init__(self, run: Any, source: Source):
        self.run, self.source = run, source

    def forward(self, inputs: Arrays) -> Round:
        import torch

        tensors = [torch.from_numpy(inputs[name]) for name in self.source.model.inputs]

        def call() -> Any:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                return self.run(*tensors)

        return Round(call)

    def array(self, output: Any) -> np.ndarray:
        return output.float().numpy()
