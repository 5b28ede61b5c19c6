"""Load a checkpoint folder: autoquant's own in any format, a float one, or another tool's int8 compressed-tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from autoquant.artifacts import read_json
from autoquant.checkpoint.files import check_files
from autoquant.checkpoint.formats import format_of
from autoquant.checkpoint.hf import AutoquantConfig, register
from autoquant.checkpoint.maps import FILE_NAME, read_layer_map
from autoquant.checkpoint.native import RAW_CONFIG
from autoquant.checkpoint.raw import load_raw
from autoquant.errors import AutoquantError, CheckpointError
from autoquant.runtimes import RUNTIMES, Runtime

_AGAIN = "Copy or write the checkpoint again."


def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    device: str | torch.device = "cpu",
    runtime: Runtime | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """The model of a checkpoint folder, ready to run: its layers run the schemes that the checkpoint names.

    Args:
        path: a local folder. Only safetensors are read, and the network is not needed.
        model: the architecture, for a checkpoint of a module that is no transformers model; its weights are replaced.
        device: where it is to run.
        runtime: default `torch`.
        trust_remote_code: run the model code in the folder, when transformers does not know the architecture.

    Returns:
        the model in eval mode; a float folder comes in the dtype that it is stored in.

    Raises:
        CheckpointError: no weights, pickled weights only, a truncated or corrupt file, missing or unexpected tensors,
            an unknown quantization method or scheme, a newer version, an unknown architecture, or `model` is needed.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}.")
    if (folder / RAW_CONFIG).is_file():
        return load_raw(folder, model, torch.device(device), runtime)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has neither config.json nor {RAW_CONFIG}: it is no checkpoint, or an incomplete one."
        )
    if model is not None:
        raise CheckpointError(f"{folder} names its own architecture; load it without model=.")
    return _load_pretrained(folder, torch.device(device), runtime, trust_remote_code)


def _load_pretrained(folder: Path, device: torch.device, runtime: Runtime | None, trust_remote_code: bool) -> nn.Module:
    register()
    content = read_json(folder / "config.json")
    quantization = content.get("quantization_config")
    where = str(folder / "config.json")
    weights_name = "model.safetensors"
    if quantization is not None:
        weights_name = format_of(quantization, where).weights_name
    check_files(folder, weights_name)
    own = (folder / FILE_NAME).is_file()
    recorded = read_layer_map(folder) if own else None
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # what a user must know of its load report becomes an error below
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        if quantization is not None:
            config.quantization_config = AutoquantConfig(
                content=quantization,
                base_dtype=str(quantization.get("base_dtype") or _dtype_name(config)),
                where=where,
                runtime=runtime,
                device=device,
            )
        loaded: Any = _class_of(content, folder, trust_remote_code).from_pretrained(
            folder,
            config=config,
            dtype="auto",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except AutoquantError:
        raise
    except Exception as error:  # transformers raises ValueError, KeyError, OSError, SafetensorError, RuntimeError, …
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise CheckpointError(f"{folder} cannot be loaded: {type(error).__name__}: {first} {_AGAIN}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    model, info = loaded
    _check_loaded(info, folder, own)
    if recorded is not None and quantization is not None:
        _check_record(model, recorded.layers, folder)
    return (runtime or RUNTIMES["torch"]()).serve(model.to(device).eval())


def _dtype_name(config: Any) -> str:
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def _class_of(content: dict[str, Any], folder: Path, trust_remote_code: bool) -> type[PreTrainedModel]:
    names = content.get("architectures") or []
    found = getattr(transformers, str(names[0]), None) if names else None
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    remote = [ref for ref in (content.get("auto_map") or {}).values() if names and str(ref).endswith(f".{names[0]}")]
    if remote and trust_remote_code:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(remote[0], folder, local_files_only=True)  # type: ignore[return-value]
    hint = " Its code is in the folder; pass trust_remote_code=True to run it." if remote else ""
    raise CheckpointError(
        f"{folder / 'config.json'} names the architecture {names[0] if names else '(none)'}, which transformers "
        f"{transformers.__version__} does not know.{hint}"
    )


def _check_loaded(info: dict[str, Any], folder: Path, own: bool) -> None:
    found = {
        "lacks": sorted(info["missing_keys"]),
        "has the wrong shape for": sorted(str(key[0]) for key in info["mismatched_keys"]),
        # Another tool's folder may hold what this class does not read (a pretraining head); one of ours may not.
        "has the unexpected": sorted(info["unexpected_keys"]) if own else [],
    }
    for what, names in found.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(f"{folder} {what} {', '.join(names[:3])}{more}. {_AGAIN}")


def _check_record(model: nn.Module, recorded: Any, folder: Path) -> None:
    """The map beside the weights must say what the modules run."""
    for name, module in model.named_modules():
        running = getattr(module, "scheme_name", None)
        if running is not None and name in recorded and recorded[name] != running:
            raise CheckpointError(
                f"{folder / FILE_NAME} says {recorded[name]} for {name}, but its weights are stored as {running}. "
                "Editing the map of a checkpoint does not change its weights: apply the edited map to the float model."
            )
