"""Make transformers read what autoquant writes: `import autoquant`, then `AutoModel.from_pretrained(DIR)`.

The same classes serve `autoquant.load`, so that both give the same model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from autoquant.checkpoint import storage
from autoquant.checkpoint.formats import format_of, get_format
from autoquant.runtimes import RUNTIMES, Runtime

METHOD = "autoquant"


class AutoquantConfig(QuantizationConfigMixin):
    """The `quantization_config` of a checkpoint that autoquant's runtime is to run, as a dictionary.

    Attributes:
        content: what config.json says, in any format that `FORMATS` reads.
        base_dtype: dtype of everything that is not quantized.
        where: named in errors.
        runtime, device: what the modules are built with and where; None: the `torch` runtime, where the weights are.
    """

    def __init__(
        self,
        *,
        base_dtype: str = "float32",
        where: str = "config.json",
        runtime: Runtime | None = None,
        device: torch.device | None = None,
        content: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        self.quant_method: Any = METHOD
        own = {"base_dtype": base_dtype, **rest, "quant_method": METHOD}
        self.content = dict(content if content is not None else own)
        self.base_dtype = base_dtype
        self.where = where
        self.runtime = runtime
        self.device = device

    def get(self, key: str, default: Any = None) -> Any:
        """transformers asks a config that it was handed as it asks the dictionary of a config.json."""
        return METHOD if key == "quant_method" else self.content.get(key, default)

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.content)


class AutoquantQuantizer(HfQuantizer):
    """Puts storage in the place of layers before their weights are read, and runtime modules there afterwards."""

    requires_calibration: ClassVar[bool] = True  # type: ignore[misc]
    quantization_config: AutoquantConfig

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The checkpoint's own: scales were rounded to it and the modules compute in it."""
        return getattr(torch, self.quantization_config.base_dtype)

    def update_attn_implementation(self, config: Any) -> Any:
        """The first look at the config, before weight files are searched: name ours (see `Format.weights_name`)."""
        method = self.quantization_config.content.get("quant_method")
        name = get_format(str(method)).weights_name
        if name != "model.safetensors":
            source = str(getattr(config, "_name_or_path", ""))
            config.transformers_weights = _file_in(source, name)
        return config

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        config = self.quantization_config
        schemes = format_of(config.content, config.where).read(config.content, model, config.where)
        storage.place(model, schemes, self.update_dtype(torch.float32), config.where)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self.quantization_config.device is not None:
            model.to(self.quantization_config.device)
        storage.run(model, self.quantization_config.runtime or RUNTIMES["torch"]())
        if hasattr(model.config, "transformers_weights"):
            del model.config.transformers_weights
        return model.eval()

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _file_in(source: str, name: str) -> str:
    """`name`, or its index when the folder holds several shards. A hub id is asked for the single file."""
    index = f"{name}.index.json"
    return index if source and (Path(source) / index).is_file() else name


def register() -> None:
    """Tell transformers about the format `autoquant`. Calling it again does nothing."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(AutoquantConfig)
        register_quantizer(METHOD)(AutoquantQuantizer)
