"""Load what can be run: a checkpoint with any runtime, or an export with its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from autoquant import checkpoint
from autoquant.errors import UsageError, pick
from autoquant.exports.example import example_for
from autoquant.exports.table import export_in
from autoquant.models.loading import load_processor
from autoquant.runtimes import RUNTIMES, Runtime


def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    device: str | torch.device = "cpu",
    runtime: str | Runtime | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """The model of a checkpoint or export folder, ready to run: its layers run the schemes that it names.

    Args:
        path: a local folder. Only safetensors, OpenVINO IR and ONNX are read, and the network is not needed.
        model: the architecture, for a checkpoint of a module that is no transformers model; its weights are replaced.
        device: where it is to run.
        runtime: `torch` (the default) or `openvino`, which compiles the model as a whole; an export has its own.
        trust_remote_code: run the model code in the folder, when transformers does not know the architecture.

    Returns:
        the model in eval mode; a float folder comes in the dtype that it is stored in.

    Raises:
        CheckpointError: what is in the folder is incomplete, corrupt, of a newer version, or needs `model`.
        UsageError: an unknown runtime, or one that is not installed or does not fit the folder.
    """
    folder = Path(path).expanduser()
    found = export_in(folder)
    if found is not None:
        if runtime not in (None, found.name):
            raise UsageError(f"{folder} is an export for {found.name}; it cannot be run with {runtime}.")
        if reason := found.missing():
            raise UsageError(reason)
        return found.open(folder, _config(folder, trust_remote_code))
    if not isinstance(runtime, str):
        return checkpoint.load(folder, model=model, device=device, runtime=runtime, trust_remote_code=trust_remote_code)
    kind = pick(RUNTIMES, runtime, "runtime")
    if reason := kind.missing():
        raise UsageError(reason)
    built = kind()
    loaded = checkpoint.load(folder, model=model, device=device, runtime=built, trust_remote_code=trust_remote_code)
    if not built.compiles:
        return loaded
    return built.whole(loaded, example_for(loaded, load_processor(folder, trust_remote_code=trust_remote_code)))


def _config(folder: Path, trust_remote_code: bool) -> Any:
    if not (folder / "config.json").is_file():
        return None
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
