"""Are the weight files of a folder there, whole and safe to read?"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from autoquant.artifacts import read_json
from autoquant.errors import CheckpointError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_files(folder: Path, weights_name: str) -> dict[str, Path]:
    """Tensor name → the file that holds it, after opening every file.

    Raises:
        CheckpointError: no safetensors, pickled weights only, or a file that is truncated, corrupt or missing.
    """
    found: dict[str, Path] = {}
    for file in _files(folder, weights_name):
        try:
            with safe_open(file, framework="pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file} is truncated or corrupt ({error}). Copy it again, or write the checkpoint again."
            ) from error
    return found


def _files(folder: Path, weights_name: str) -> list[Path]:
    if (folder / weights_name).is_file():
        return [folder / weights_name]
    index = folder / f"{weights_name}.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no 'weight_map'. Write the checkpoint again.")
        files = [folder / Path(str(name)).name for name in sorted(set(weight_map.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {index.name} names. Copy it again.")
        return files
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    found = f" It has {', '.join(pickles)}, which can run code when opened and is not read." if pickles else ""
    raise CheckpointError(
        f"{folder} has no {weights_name}.{found} Write safetensors with model.save_pretrained(folder)."
    )
