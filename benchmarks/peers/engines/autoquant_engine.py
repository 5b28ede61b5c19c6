"""autoquant: a checkpoint that a search shipped, or one uniform map, so that there is always a row."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.peers.engines.base import Engine, Round, Served
from benchmarks.peers.engines.torch_engine import TorchServed, import_model, prepare
from benchmarks.peers.models import STEPS, Arrays, Shape, Source

WARM = 6
"""Rounds before the first that is timed: a graph is captured when its call has come some dozens of times."""
SCHEME, BASE = "int8-channel-sym/a8-token", "bfloat16"


class AutoquantServed(TorchServed):
    """A checkpoint as `autoquant.load` serves it."""

    def decode(self, inputs: Arrays) -> Round:
        """With transformers' DynamicCache, which is what `generate` uses; each round's first token moves it to roomier memory."""
        from transformers import DynamicCache

        count = sum(name.startswith("key_") for name in inputs)
        past = [(self._tensor(inputs[f"key_{i}"]), self._tensor(inputs[f"value_{i}"])) for i in range(count)]
        tokens = self.torch.from_numpy(inputs["tokens"]).split(1, dim=1)
        cache = DynamicCache(past)

        def before() -> None:
            cache.layers = DynamicCache(past).layers

        def call() -> Any:
            with self.quiet():
                for token in tokens:
                    logits = self.run(input_ids=token, past_key_values=cache, use_cache=True).logits
            return logits

        for _ in range(WARM):
            before()
            call()
        return Round(call, before, STEPS)


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
        self.capture(source, kind, folder)

    def capture(self, source: Source, kind: str, folder: Path) -> None:
        """Serve once: the graph of such calls is then stored on this machine, as other engines' graphs are in their files."""
        served: Any = self.load(source, folder, None, 1)
        shape = next(shape for shape in source.model.shapes if shape.kind == kind)
        arrays = source.arrays(source.task.example(1, shape.length))
        if kind == "decode":
            from transformers import DynamicCache

            ids, cache = served.torch.from_numpy(arrays["input_ids"]), DynamicCache()
            with served.quiet():
                served.run(input_ids=ids, past_key_values=cache, use_cache=True)
            arrays = {"tokens": arrays["input_ids"][:, :STEPS]}
            for number, layer in enumerate(cache.layers):
                arrays |= {f"key_{number}": layer.keys.float().numpy(), f"value_{number}": layer.values.float().numpy()}
            served.decode(arrays).call()
        else:
            served.forward(arrays).call()

    def load(self, source: Source, folder: Path, shape: Shape | None, threads: int) -> Served:
        import autoquant

        prepare(threads, compiled=False)
        return AutoquantServed(autoquant.load(folder), source)


@dataclass(frozen=True)
class AutoquantFolder(AutoquantUniform):
    """A checkpoint folder, as it is."""

    checkpoint: Path = Path()

    @property
    def artefact(self) -> str:
        return f"autoquant-{self.checkpoint.resolve().as_posix().strip('/').replace('/', '-')}"

    def build(self, source: Source, kind: str, folder: Path) -> None:
        shutil.copytree(self.checkpoint, folder, dirs_exist_ok=True)
        self.capture(source, kind, folder)
