"""torch itself: eager and compiled, in each float dtype, and `quantize_dynamic`.

Compiled rows are compiled for their one shape with weights frozen in (`freezing`), which lets Inductor pack them: the
best that plain torch.compile gives on a CPU.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.engines.base import Engine, Round, Served
from benchmarks.peers.models import STEPS, Arrays, Shape, Source

PICKLE = "model.pt"
"""A pickled module that the same run wrote: these engines have no safer format for a whole quantized module."""


class TorchServed(Served):
    """A transformers module, compiled or not."""

    def __init__(self, model: Any, source: Source, *, compiled: bool = False, dynamic: bool | None = False):
        import torch

        self.torch, self.model, self.output = torch, model.eval(), source.model.output
        self.is_decoder = source.model.auto_class == "AutoModelForCausalLM"
        # Inductor freezes weights only under no_grad; inference_mode is the quicker one for eager.
        self.quiet: Callable[[], AbstractContextManager[Any]] = torch.no_grad if compiled else torch.inference_mode
        self.run: Callable[..., Any] = torch.compile(model, dynamic=dynamic) if compiled else model

    def forward(self, inputs: Arrays) -> Round:
        tensors = {name: self._tensor(value) for name, value in inputs.items()}
        more = {"use_cache": False} if self.is_decoder else {}

        def call() -> Any:
            with self.quiet():
                return getattr(self.run(**tensors, **more), self.output)

        return Round(call)

    def decode(self, inputs: Arrays) -> Round:
        """With transformers' StaticCache: nothing is copied or allocated from one token to the next."""
        from transformers import StaticCache

        filled = inputs["key_0"].shape[2]
        cache = StaticCache(self.model.config, max_cache_len=filled + STEPS)
        for number, layer in enumerate(cache.layers):
            layer.update(self._tensor(inputs[f"key_{number}"]), self._tensor(inputs[f"value_{number}"]))
        tokens = self.torch.from_numpy(inputs["tokens"]).split(1, dim=1)

        def before() -> None:
            for layer in cache.layers:
                layer.cumulative_length.fill_(filled)

        def call() -> Any:
            with self.quiet():
                for token in tokens:
                    logits = self.run(input_ids=token, past_key_values=cache, use_cache=True).logits
            return logits

        return Round(call, before, STEPS)

    def array(self, output: Any) -> np.ndarray:
        return output.float().numpy()

    def _tensor(self, value: np.ndarray) -> Any:
        tensor = self.torch.from_numpy(value)
        return tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor


def import_model(source: Source, *, compiled: bool) -> None:
    """Import the architecture's code, and the compiler's."""
    kind = json.loads((source.folder / "config.json").read_text())["model_type"]
    importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    if compiled:
        importlib.import_module("torch._inductor.compile_fx")


def open_torch(folder: Path, source: Source, dtype: str = "auto", **more: Any) -> Any:
    """A folder of transformers, with the class that the model is served with."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return getattr(transformers, source.model.auto_class).from_pretrained(folder, dtype=dtype, **more).eval()


def prepare(threads: int, *, compiled: bool) -> None:
    """Settings of the process, before anything is loaded."""
    import torch

    torch.set_num_threads(threads)
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True


@dataclass(frozen=True)
class TorchFloat(Engine):
    dtype: str
    compiled: bool = False
    packages: ClassVar[dict[str, str]] = {"torch": "torch", "transformers": "transformers"}

    @property
    def artefact(self) -> str:
        return f"torch-{self.dtype}"

    def warm_imports(self, source: Source) -> None:
        super().warm_imports(source)
        import_model(source, compiled=self.compiled)

    def build(self, source: Source, kind: str, folder: Path) -> None:
        open_torch(source.folder, source, self.dtype).save_pretrained(folder)

    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        prepare(threads, compiled=self.compiled)
        model = open_torch(folder, source, self.dtype)
        return TorchServed(model, source, compiled=self.compiled, dynamic=None if shape is None else False)


@dataclass(frozen=True)
class TorchDynamic(Engine):
    """`torch.ao.quantization.quantize_dynamic` on all Linears: per-tensor activations, eager only."""

    packages: ClassVar[dict[str, str]] = {"torch": "torch", "transformers": "transformers"}

    @property
    def artefact(self) -> str:
        return "torch-quantize-dynamic"

    def warm_imports(self, source: Source) -> None:
        super().warm_imports(source)
        import_model(source, compiled=False)

    def build(self, source: Source, kind: str, folder: Path) -> None:
        import torch
        from torch.ao.quantization import quantize_dynamic

        model = open_torch(source.folder, source, "float32")
        torch.save(quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8), folder / PICKLE)

    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        import torch

        prepare(threads, compiled=False)
        return TorchServed(torch.load(folder / PICKLE, weights_only=False), source)
