"""The tools that search: each takes the same task and budget, and leaves a model that serves it.

All of them calibrate on the task's calibration split and judge maps on its search split. autoquant also certifies, on the
certification split, which the other tools do not; afterwards every tool's model is judged on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoquant import forkserver
from benchmarks.peers.models import MODELS, Judge, Model, Source

BATCH = 8
"""Rows of the calls that are timed, and that autoquant's prices are measured with."""


@dataclass(frozen=True)
class Job:
    """A model to be searched.

    Attributes:
        length: tokens of a row in the calls that are timed; None for images.
    """

    model: Model
    length: int | None = None


SST2 = Model(
    "minilm-sst2",
    "AutoModelForSequenceClassification",
    "logits",
    ("input_ids", "attention_mask", "token_type_ids"),
    {0: "batch", 1: "length"},
    (),
    (Judge("classification", "sst2/dev.tsv", "sst2/test.tsv", {"text": 0, "label": 1}),),
    items=1600,
)
JOBS = {
    "minilm-sst2": Job(SST2, 32),
    "minilm-stsb": Job(replace(MODELS["minilm"], items=1370), 32),
    "dinov2-cifar10": Job(replace(MODELS["dinov2-cifar10"], items=1200)),
    "smollm2": Job(replace(MODELS["smollm2"], items=64), 128),
}


@dataclass(frozen=True)
class Found:
    """What a search left.

    Attributes:
        module: takes the batches of the task, gives logits; timed and judged as it is.
        evaluations: of the metric on the whole search split.
        size: bytes of the weights on disk.
        certifying: seconds of the search that measured and judged models on the certification split.
    """

    module: nn.Module
    evaluations: float
    size: int
    said: str = ""
    certifying: float = 0.0


@forkserver.serving()
def autoquant_search(source: Source, folder: Path, threads: int, length: int | None, budget: float) -> Found:
    """All stages, with certification, begun as the command line begins them."""
    from autoquant.lazy import importing

    with importing():
        import autoquant
        from autoquant import pipeline
        from autoquant.session import Progress, Session
        from autoquant.settings import Settings

    judge = source.model.judges[0]
    settings = Settings(
        model=str(source.folder), task=judge.task, data=str(source.data / str(judge.data)),
        test_data=str(source.data / judge.test_data) if judge.test_data else None,
        columns=dict(judge.columns), seed=source.seed, threads=threads,
        sizes={"calibration": 64, "search": source.model.items // 2, "certification": source.model.items},
        batch_size=BATCH, seq_len=length, budget=budget,
    )  # fmt: skip
    report = pipeline.run(Session(settings, folder, Progress(quiet=True)))
    stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in report["stages"].items())
    size = sum(file.stat().st_size for file in (folder / "checkpoint").glob("*.safetensors"))
    return Found(
        autoquant.load(folder / "checkpoint"),
        report["search"]["full_evaluations"],
        size,
        f"{report['verdict']}; s: {stages}",
        certifying=report["stages"]["power"] + report["stages"]["certify"],
    )


def nncf_control(source: Source, folder: Path, threads: int, length: int | None, budget: float) -> Found:
    """OpenVINO: NNCF's `quantize_with_accuracy_control`; what stays float is computed in bfloat16, its default here."""
    import openvino

    from benchmarks.peers.engines.adapter import AsModule
    from benchmarks.peers.engines.openvino_engine import OvServed, control, convert

    seen: list[float] = []
    graph = control(source, convert(source, "forward"), seen, budget)
    openvino.save_model(graph, folder / "model.xml", compress_to_fp16=True)
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", settings)
    return Found(AsModule(OvServed(compiled), source), len(seen), (folder / "model.bin").stat().st_size)


def inc_autotune(source: Source, folder: Path, threads: int, length: int | None, budget: float) -> Found:
    """Intel Neural Compressor 3: `autotune` over its own set of static int8 configurations, compiled.

    Its budget is a share of the metric: of accuracies below 1 a little less than the others'.
    """
    from neural_compressor.common.base_tuning import TuningConfig
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import INT8StaticQuantConfig, autotune

    from autoquant.evaluation import evaluate_split
    from benchmarks.peers.engines.export import traceable, varying

    module, inputs = traceable(source, "forward")
    exported = export(module, inputs, varying(source, len(inputs)))
    seen: list[float] = []

    def run(model: Any) -> None:
        for row in source.calibration():
            model(*(torch.from_numpy(row[name]) for name in source.model.inputs))

    def judge(model: Any) -> float:
        with torch.no_grad():
            seen.append(evaluate_split(Ordered(model, source), source.task, "search", batch_size=BATCH).metric)
        return seen[-1]

    tuning = TuningConfig(config_set=[INT8StaticQuantConfig.get_config_set_for_tuning()], tolerable_loss=budget)
    found = autotune(exported, tuning, judge, run_fn=run, example_inputs=inputs)
    torch.save(found.state_dict(), folder / "state.pt")
    compiled = Ordered(torch.compile(found, dynamic=True), source, autocast=True)
    example = source.task.example(BATCH, length)
    with torch.no_grad():
        source.task.forward(compiled, example)  # compiled once, within the search's time: without that it serves nobody
    return Found(compiled, len(seen), (folder / "state.pt").stat().st_size)


class Ordered(nn.Module):
    """An exported graph, which takes its inputs in order, as a module that takes them by name."""

    def __init__(self, run: Callable[..., Any], source: Source, autocast: bool = False) -> None:
        super().__init__()
        self.run, self.names, self.autocast = run, source.model.inputs, autocast

    def forward(self, **batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            found = self.run(*(batch[name] for name in self.names))
        return (found[0] if isinstance(found, tuple | list) else found).float()


def float_model(source: Source, folder: Path, threads: int, length: int | None, budget: float) -> Found:
    """The float32 model, as transformers runs it."""
    from autoquant.models.loading import load_model

    size = sum(file.stat().st_size for file in source.folder.glob("*.safetensors"))
    return Found(load_model(str(source.folder), source.model.auto_class).model, 0, size)


TOOLS: dict[str, Callable[[Source, Path, int, int | None, float], Found]] = {
    "float32": float_model,
    "autoquant": autoquant_search,
    "nncf-accuracy-control": nncf_control,
    "inc-autotune": inc_autotune,
}


def item_values(found: Found, source: Source) -> np.ndarray:
    """(items,) of the certification split."""
    from autoquant.evaluation import evaluate_split

    with torch.no_grad():
        return evaluate_split(found.module, source.task, "certification", batch_size=BATCH).values
