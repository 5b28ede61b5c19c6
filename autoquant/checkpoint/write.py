"""Write a checkpoint: weights, config, layer map and the processor's files, in one atomic folder."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from autoquant.artifacts import folder_bytes, write_json
from autoquant.checkpoint.apply import apply_map, schemes_of
from autoquant.checkpoint.folder import whole_folder
from autoquant.checkpoint.format import Format
from autoquant.checkpoint.formats import get_format
from autoquant.checkpoint.maps import FILE_NAME, write_layer_map
from autoquant.checkpoint.native import RAW_CONFIG
from autoquant.checkpoint.tensors import COMPANIONS, payload
from autoquant.errors import FolderError
from autoquant.models.layers import inspect
from autoquant.models.loading import processor_files as processor_files_of
from autoquant.models.smoothed import smoothed
from autoquant.runtimes import Runtime
from autoquant.values import LayerMap

SHARD_SIZE = "5GB"


def write_checkpoint(
    model: nn.Module,
    layer_map: LayerMap,
    out: Path,
    *,
    runtime: Runtime | None = None,
    source: Path | None = None,
    processor_files: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write `model` (float32, left unchanged) under `layer_map` to the folder `out`.

    A transformers model becomes a Hugging Face folder in the map's format, any other module a folder of the format
    `autoquant` without config.json. A map with every layer in the base dtype becomes an ordinary float checkpoint. An
    older checkpoint of autoquant in `out` is replaced; nothing else is.

    Args:
        runtime: the runtime that must be able to run the map; default `torch`.
        source: folder the model came from; its tokenizer and processor files are copied.
        processor_files: more files to copy; those below `source` keep their place in it.

    Returns:
        `path`, `format` (None for an ordinary float checkpoint), `payload_bytes` (all tensors), `file_bytes` (weight
        files), `layer_bytes` (layer → bytes stored under its name), `notes` (those of `apply_map`, and why the format
        is not the map's).

    Raises:
        LayerMapError: the map does not fit the model.
        NumericsError: a weight to be quantized holds NaN or infinity.
        FolderError: `out` is there and is no checkpoint of autoquant, or it is `source`.
        AutoquantError: the disk is full; what was in `out` is untouched.
    """
    out = Path(out)
    if source is not None and out.resolve() == Path(source).resolve():
        raise FolderError(f"{out} is the folder of the float model. Choose another --out folder.")
    pretrained = isinstance(model, PreTrainedModel)
    reason = get_format(layer_map.format).cannot_hold_model(model)
    if reason:
        layer_map = replace(layer_map, format="autoquant")
    notes = [f"Written in the format autoquant: {reason}."] if reason and pretrained else []
    notes += apply_map(model, layer_map, runtime=runtime)
    model = smoothed(model, layer_map.smoothing)
    schemes = schemes_of(inspect(model).layers, layer_map)
    is_float = all(scheme.dtype == layer_map.base_dtype for scheme in schemes.values())
    form = get_format(layer_map.format)
    config = None if is_float and pretrained else form.write(model, schemes, layer_map.base_dtype, layer_map.outliers)
    stored = payload(model, layer_map)
    with whole_folder(out) as partial:
        _save_tensors(_file_names(model, stored.tensors), partial, _weights_name(form, config))
        if isinstance(model, PreTrainedModel):
            _save_config(model, config, layer_map.base_dtype, partial)
        else:
            write_json(partial / RAW_CONFIG, {"model_class": type(model).__name__, **(config or {})})
        _copy(source, processor_files, partial)
        if source is not None and getattr(getattr(model, "config", None), "auto_map", None):
            _copy(source, sorted(Path(source).glob("*.py")), partial)  # the model's own code
        write_layer_map(partial / FILE_NAME, layer_map)
        file_bytes = folder_bytes(partial)
    return {
        "path": str(out),
        "format": None if config is None else form.name,
        "payload_bytes": stored.bytes,
        "file_bytes": file_bytes,
        "layer_bytes": dict(stored.layer_bytes),
        "notes": notes,
    }


def _weights_name(form: Format, config: dict[str, Any] | None) -> str:
    return "model.safetensors" if config is None else form.weights_name


def _save_tensors(tensors: dict[str, Tensor], folder: Path, weights_name: str) -> None:
    """One safetensors file, or several and their index when they are larger than `SHARD_SIZE`."""
    stem = weights_name.removesuffix(".safetensors")
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=SHARD_SIZE
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, str(folder / file), metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{weights_name}.index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", "utf8")


def _save_config(model: PreTrainedModel, quantization: dict[str, Any] | None, base_dtype: str, folder: Path) -> None:
    config = copy.deepcopy(model.config)
    config.dtype = base_dtype
    config.architectures = [type(model).__name__]
    if quantization is not None:
        config.quantization_config = quantization
    config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _file_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that the model's files have on the hub, where transformers renames them on loading.

    Other readers know only those names. A model that transformers does not merely rename but reshapes keeps the names
    of its modules, which transformers reads as well: a scale does not survive a reshape.
    """
    if not isinstance(model, PreTrainedModel):
        return dict(tensors)
    ignored = set(model._keys_to_ignore_on_save or ())
    kept = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    renamed = revert_weight_conversion(model, dict(kept))
    same = {id(tensor) for tensor in renamed.values()} == {id(tensor) for tensor in kept.values()}
    beside = all(
        last not in COMPANIONS or last == "input_scale" or f"{name}.weight" in renamed or f"{name}.weight" not in kept
        for name, _, last in (key.rpartition(".") for key in renamed)
    )
    return renamed if same and beside else kept


def _copy(source: Path | None, files: Sequence[Path], folder: Path) -> None:
    """Copy tokenizer and processor files; never one that was written here already."""
    wanted = {Path(file): Path(file).name for file in files}
    if source is not None:
        source = Path(source)
        wanted |= {file: str(file.relative_to(source)) for file in processor_files_of(source)}
        wanted |= {Path(f): str(Path(f).relative_to(source)) for f in files if Path(f).is_relative_to(source)}
    for file, place in wanted.items():
        target = folder / place
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
