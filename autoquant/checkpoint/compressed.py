"""Format `compressed-tensors`: int8 Linear and Embedding layers that stock transformers, and serving engines, read.

Facts about its reader (compressed-tensors 0.20 in transformers 5.23) that this file has to respect:

- Each config group must name its `format`. Left out, a weight-only group is taken for `pack-quantized`.
- The reader hangs scales on Linear and Embedding modules only; it skips GPT-2's Conv1D and convolutions, whose codes
  would then be used as floats.
- Tied weights are tied after loading by their `weight` alone. Each of the tied layers needs a scale of its own in the
  file; a missing one is left uninitialised with no more than a warning.
- It refuses architectures of which transformers splits a weight on loading (DINOv2, for its SwiGLU variant), quantized
  or not: `cannot_hold_model` finds out.
- For `token` activations it keeps the first two axes of the input: (batch, tokens, width) gets a scale a token as it
  should, but (batch, width), the input of a classifier on a pooled state, gets one scale for the whole batch.
- It has no word for outlier channels. A layer with such is one whose weights alone are quantized, to other readers, which
  are more exact with it then; the channels stand under a key of their own that they do not look at.
- Weights of 6 and 4 bits are `pack-quantized`, with int8 inputs as well. An embedding cannot be: transformers fills the `weight`
  that it does not find (`_init_weights`). Nor can asymmetric ones: it expects their zero points unpacked while it prepares the
  modules, and packed in the file. Releases before 0.20 pack 6 bits otherwise.
- It expands the weights in a hook on the model's first call. Who calls `model.forward` itself (sentence-transformers
  does) finds int8 codes there, unless the model was opened with `CompressedTensorsConfig(dequantize=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

from autoquant.checkpoint.format import Format, StoredScheme
from autoquant.checkpoint.outliers import read, written
from autoquant.checkpoint.targets import match, targets
from autoquant.errors import CheckpointError, SchemeError
from autoquant.schemes import SCHEMES
from autoquant.values import Layer, QuantizationArgs, Scheme

LAYOUT = "int-quantized"
"""compressed-tensors' name for: `weight` int8, `weight_scale`, `weight_zero_point` if asymmetric."""
PACKED = "pack-quantized"
"""Its name for: `weight_packed`, `weight_shape`, `weight_scale`, `weight_zero_point` if asymmetric."""
MIXED = "mixed-precision"
"""Its name for a model whose groups have several of them."""

OUTLIERS = "/a8-outlier"
READABLE = ("int-quantized", "naive-quantized", PACKED)


class CompressedTensors(Format):
    name: ClassVar[str] = "compressed-tensors"

    def cannot_hold_model(self, model: nn.Module) -> str | None:
        if not isinstance(model, PreTrainedModel):
            return "it describes transformers models only"
        # Ask the reader itself, without a checkpoint: how does it want this architecture's names converted?
        reader = CompressedTensorsHfQuantizer.__new__(CompressedTensorsHfQuantizer)
        reader.pre_quantized, reader.use_fp8_kernel = True, False
        reader.quantization_config = SimpleNamespace(dequantize=False)  # type: ignore[assignment]
        try:
            get_model_conversion_mapping(model, hf_quantizer=reader)
        except ValueError as error:
            made = f"transformers {transformers.__version__} cannot open it for a {type(model).__name__}"
            return f"{made} ({str(error)[:60]}…)"
        return None

    def cannot_hold(self, layer: Layer, scheme: Scheme, base_dtype: str) -> str | None:
        if scheme.dtype is not None:
            return None if scheme.dtype == base_dtype else f"{scheme.dtype} differs from the base dtype {base_dtype}"
        if scheme.weights is not None and scheme.is_packed:
            if layer.kind == "embedding":
                return "its reader does not open an embedding whose weights are packed"
            if not scheme.weights.symmetric:
                return "its reader does not open packed weights with a zero point"
        return None if layer.kind in ("linear", "embedding") else f"its reader does not quantize a {layer.kind}"

    def write(
        self, model: nn.Module, schemes: Mapping[str, Scheme], base_dtype: str, outliers: Mapping[str, Sequence[int]]
    ) -> dict[str, Any]:
        quantized: dict[Scheme, list[str]] = {}
        for name, scheme in schemes.items():
            if not scheme.is_float:
                told = SCHEMES[scheme.name.removesuffix(OUTLIERS)]
                quantized.setdefault(told, []).append(name)
        layouts = {_layout(scheme) for scheme in quantized}
        return {
            "quant_method": self.name,
            "format": layouts.pop() if len(layouts) == 1 else MIXED,
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{index}": {
                    "format": _layout(scheme),
                    "targets": targets(names, model),
                    "weights": _args(scheme.weights),
                    "input_activations": _args(scheme.input),
                    "output_activations": None,
                }
                for index, (scheme, names) in enumerate(quantized.items())
            },
            # transformers needs no ignore list beside explicit targets; vLLM refuses a Linear that is in neither.
            "ignore": targets([name for name, scheme in schemes.items() if scheme.is_float], model),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
            **written(schemes, outliers),
        }

    def read(self, config: Mapping[str, Any], model: nn.Module, where: str) -> dict[str, StoredScheme]:
        if config.get("kv_cache_scheme"):
            raise CheckpointError(f"{where} quantizes its key/value cache, which autoquant does not run. {_OTHER}")
        groups = list((config.get("config_groups") or {}).values())
        if not all(isinstance(group, dict) for group in groups):
            raise CheckpointError(f"{where}: config_groups with named presets are not read. {_OTHER}")
        of_target = {target: _scheme(group, config, where) for group in groups for target in group["targets"]}
        ignore, outliers = list(config.get("ignore") or []), read(config, where)
        found = {}
        for name, module in model.named_modules():
            target = match(name, module, of_target)
            if target is not None and match(name, module, ignore) is None:
                told = of_target[target]
                scheme = SCHEMES[told.name + OUTLIERS] if name in outliers and told.input is None else told
                found[name] = StoredScheme(scheme, outliers.get(name, ()))
        return found


_OTHER = "Open it with transformers, or quantize the float model again with autoquant."


def _layout(scheme: Scheme) -> str:
    return PACKED if scheme.is_packed else LAYOUT


def _args(args: QuantizationArgs | None) -> dict[str, Any] | None:
    if args is None:
        return None
    return {
        "num_bits": args.num_bits,
        "type": args.type,
        "strategy": args.strategy,
        "group_size": None,
        "symmetric": args.symmetric,
        "dynamic": args.dynamic,
    }


def _scheme(group: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Scheme:
    layout = group.get("format") or config.get("format")
    if layout not in READABLE:
        raise CheckpointError(
            f"{where} stores weights as '{layout}'; autoquant reads {' and '.join(READABLE)}. {_OTHER}"
        )
    try:
        wanted = (_quantization(group.get("weights")), _quantization(group.get("input_activations")))
    except SchemeError as error:
        raise CheckpointError(f"{where}: {error} {_OTHER}") from error
    for scheme in SCHEMES.values():
        if (scheme.weights, scheme.input) == wanted and not group.get("output_activations"):
            if scheme.is_packed != (layout == PACKED):
                stored = f"{where} stores weights of {group['weights']['num_bits']} bits as '{layout}'"
                raise CheckpointError(f"{stored}, which autoquant does not read. {_OTHER}")
            return scheme
    raise CheckpointError(f"{where} has a scheme that is not in autoquant's table: {dict(group)}. {_OTHER}")


def _quantization(args: Mapping[str, Any] | None) -> QuantizationArgs | None:
    if not args:
        return None
    return QuantizationArgs(
        strategy=str(args.get("strategy") or "tensor"),
        num_bits=int(args.get("num_bits", 8)),
        type=str(args.get("type", "int")),
        symmetric=bool(args.get("symmetric", True)),
        dynamic=bool(args.get("dynamic", False)),
    )
