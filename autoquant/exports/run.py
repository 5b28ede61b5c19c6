"""Export a checkpoint: its stored codes and scales, as they are, in another engine's file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoquant import checkpoint
from autoquant.artifacts import folder_bytes, read_json, write_text
from autoquant.checkpoint import whole_folder
from autoquant.errors import CheckpointError, FolderError, UsageError, pick
from autoquant.exports.example import example_for
from autoquant.exports.table import EXPORTS, RECORD, export_in
from autoquant.models.loading import load_processor, processor_files
from autoquant.runtimes.portable import base_dtype, ported


def export(
    path: str | Path,
    format: str,
    out: str | Path,
    *,
    model: nn.Module | None = None,
    example: Mapping[str, Tensor] | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write the checkpoint in the folder `path` to the folder `out` for another engine.

    The weights are the very codes and scales of the checkpoint. The folder also gets config.json, the tokenizer or image
    processor, and the layer map; an older export of autoquant in `out` is replaced.

    Args:
        format: a key of `EXPORTS`.
        model: the architecture, for a checkpoint of a module that is no transformers model.
        example: a batch by input names; by default a small one is made with the tokenizer or image processor.

    Returns:
        `path`, `format`, `file_bytes` (the weights), `notes` (what a user of the engine by itself must know).

    Raises:
        UsageError: an unknown format, or one that is not installed.
        SchemeError: a layer has a scheme that the engine cannot run; the message says why.
    """
    kind = pick(EXPORTS, format, "export format")
    source, out = Path(path).expanduser(), Path(out)
    if export_in(source) is not None:
        raise UsageError(f"{source} is an export already; give the checkpoint that it was made from.")
    if out.resolve() == source.resolve():
        raise FolderError(f"{out} is the folder of the checkpoint. Choose another --out folder.")
    if reason := kind.missing():
        raise UsageError(reason)
    if not (source / RECORD).is_file():
        raise CheckpointError(f"{source} has no {RECORD}: it is no checkpoint of autoquant. Make one: autoquant apply.")
    loaded = checkpoint.load(source, model=model, runtime=kind.runtime(), trust_remote_code=trust_remote_code)
    processor = load_processor(source, trust_remote_code=trust_remote_code) if example is None else None
    batch = example if example is not None else example_for(loaded, processor)
    with whole_folder(out) as partial:
        kind.write(loaded, batch, partial)
        _companions(source, partial)
    note = kind.note(base_dtype(ported(loaded)))
    return {"path": str(out), "format": kind.name, "file_bytes": weight_bytes(out), "notes": [note] if note else []}


def weight_bytes(folder: str | Path) -> int:
    """Bytes of the weight files of a checkpoint or an export."""
    found = export_in(folder)
    return folder_bytes(Path(folder)) if found is None else folder_bytes(Path(folder), found.weights)


def _companions(source: Path, folder: Path) -> None:
    """config.json without the description of weights that are not here, the processor's files, and the layer map."""
    if (source / "config.json").is_file():
        text = (source / "config.json").read_text(encoding="utf8")
        config = read_json(source / "config.json")
        if config.pop("quantization_config", None) is not None:
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_text(folder / "config.json", text)
    files = {file: str(file.relative_to(source)) for file in processor_files(source)}
    for file, place in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / place)
    shutil.copyfile(source / RECORD, folder / RECORD)
