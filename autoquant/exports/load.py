"""Load what can be run: a checkpoint with any runtime, or an export with its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from autoquant import checkpoint
from autoquant.errors import UsageError
from autoquant.exports.table import RECORD, export_in
from autoquant.runtimes import RUNTIMES, Runtime, make_runtime, unusable


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
        runtime: `torch` or `openvino`; by default the one that the layer map was found on, where that is installed, otherwise
            `torch`. An export has its own.
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
    chosen = (
        runtime if isinstance(runtime, Runtime) else make_runtime(runtime or _recorded(folder, str(device)) or "torch")
    )
    return checkpoint.load(folder, model=model, device=device, runtime=chosen, trust_remote_code=trust_remote_code)


def _recorded(folder: Path, device: str) -> str | None:
    """The runtime that the checkpoint's map was found and certified on, where that can be used."""
    if not (folder / RECORD).is_file():
        return None
    name = checkpoint.read_layer_map(folder).found_on.get("runtime")
    return name if name in RUNTIMES and unusable(RUNTIMES[name], device) is None else None


def _config(folder: Path, trust_remote_code: bool) -> Any:
    if not (folder / "config.json").is_file():
        return None
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
