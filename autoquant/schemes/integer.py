"""Affine integer quantization of weights and activations: q = round(x / scale) + zero_point, x ≈ (q - zero_point) · scale.

Definitions follow compressed-tensors (`calculate_qparams`), so that its reader reproduces ours: an asymmetric range
always contains 0, which is therefore kept exactly; a dynamic symmetric activation scale is absmax / 127.5 with codes in
[-128, 127]. Symmetric weights use absmax / 127 with codes in [-127, 127], so that the code range is symmetric, too (of 6 bits 31,
of 4 bits 7). Codes of any width are held in int8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoquant.errors import NumericsError, SchemeError
from autoquant.values import QuantizationArgs

INT8_MIN, INT8_MAX = -128, 127
OUTLIER_COUNTS = range(16, 65, 16)
"""How many outlier channels a layer may have."""
OUTLIER_MAX = 127 * 256 + 127
"""Largest code of an outlier: two int8 digits."""


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized matrix.

    Attributes:
        values: int8 (out, in).
        scale: (out, 1) for per-channel, (1,) for per-tensor; in the float dtype that it is stored in.
        zero_point: int8 of the shape of `scale`; None when symmetric.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None = None


def quantize(
    weight: Tensor, args: QuantizationArgs, *, scale_dtype: torch.dtype = torch.float32, name: str = "weight"
) -> QuantizedTensor:
    """Round a weight to codes of 8 bits or fewer, to nearest (ties to even).

    The scale is rounded *up* to `scale_dtype` before the weight is divided by it: what is stored is what was used, and
    nothing is clipped by the rounding. Every element is then within scale/2 of its code's value.

    Args:
        weight: (out, in), any float dtype; left unchanged.
        scale_dtype: dtype in which the scale is stored.
        name: named in errors.

    Raises:
        NumericsError: the weight holds NaN or infinity, or its scale is too large for `scale_dtype`.
        SchemeError: the weight is not a matrix, or the strategy is not one of weights.
    """
    if weight.ndim != 2 or weight.numel() == 0:
        raise SchemeError(f"{name}: expected a non-empty matrix (out, in), not shape {tuple(weight.shape)}.")
    if args.strategy not in ("tensor", "channel"):
        raise SchemeError(f"{name}: weights are quantized per tensor or per channel, not per {args.strategy}.")
    weight = weight.detach().float()
    low, high = _range(weight, args.strategy)
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise NumericsError(f"{name} holds {bad} NaN or infinite values; a model like that cannot be quantized.")
    low, high = low.clamp(max=0), high.clamp(min=0)
    first, last = -(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1) - 1
    if args.symmetric:
        scale = _stored(torch.maximum(-low, high) / last, scale_dtype, name)
        values = (weight / scale.float()).round_().clamp_(-last, last)
        return QuantizedTensor(values.to(torch.int8), scale)
    scale = _stored(high / (last - first) - low / (last - first), scale_dtype, name)
    zero_point = torch.round(first - low / scale.float()).clamp_(first, last)
    values = (weight / scale.float()).round_().add_(zero_point).clamp_(first, last)
    return QuantizedTensor(values.to(torch.int8), scale, zero_point.to(torch.int8))


def dequantize(q: QuantizedTensor, dtype: torch.dtype | None = None) -> Tensor:
    """(out, in) in `dtype` (default: the scale's): (values - zero_point) · scale, computed in float32."""
    values = q.values.float()
    if q.zero_point is not None:
        values = values - q.zero_point.float()
    return (values * q.scale.float()).to(dtype or q.scale.dtype)


def outlier_channels(absmax: Tensor) -> Tensor:
    """int32 (some,) the channels with the largest values, in order: one in 16, as far as `OUTLIER_COUNTS` allow.

    What LLM.int8() (arXiv 2208.07339, section 3.2) computes in float16 has codes of 16 bits here: on SmolLM2's head, 16 of 576
    leave a fourteenth of the divergence that int8 inputs cause, and 32 a thirty-eighth.

    Args:
        absmax: (in,) largest absolute value of each channel on calibration data.
    """
    count = min(len(absmax), max(OUTLIER_COUNTS[0], min(OUTLIER_COUNTS[-1], len(absmax) // 256 * OUTLIER_COUNTS.step)))
    return absmax.topk(count).indices.sort().values.to(torch.int32)


def quantize_input(
    x: Tensor, args: QuantizationArgs, scale: Tensor | None = None, outliers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Round activations to int8 codes, symmetric; those of outlier channels to int16.

    Args:
        x: (..., in) float; may have no rows.
        scale: (1,) float32, calibrated, for a static scheme: the largest absolute input / 127.5.
        outliers: integers (some,), the channels whose codes may take 16 bits, for a scheme that has them.

    Returns:
        codes int8 (..., in), with outliers int16, and float32 scale (..., 1), alike in all rows but for strategy `token`. Of a
        row that holds NaN or infinity the scale is NaN; if one scale serves all rows and is computed from them, it is NaN in
        all.
    """
    x = x.float()
    if args.outliers:
        return _quantize_with_outliers(x, outliers)
    top = x.abs().amax(-1, keepdim=True)
    if args.dynamic:
        if args.strategy == "tensor" and x.numel():
            top = top.amax().expand_as(top)
        scale = torch.where(top > 0, top / 127.5, 1.0)
    elif scale is None:
        raise SchemeError("A static activation scheme needs a calibrated range (input_absmax).")
    scale = torch.where(top.isfinite(), scale, torch.nan)
    return torch.round(x / scale).clamp_(INT8_MIN, INT8_MAX).to(torch.int8), scale


def split_outliers(codes: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
    """int16 codes (..., in) of `quantize_input` as int8 digits: low (..., in), high (..., some); code = low + 256 · high."""
    low = codes.to(torch.int8)  # the low byte, with its sign
    high = (codes - low) >> 8
    return low, high.index_select(-1, outliers.long()).to(torch.int8)


def _quantize_with_outliers(x: Tensor, outliers: Tensor | None) -> tuple[Tensor, Tensor]:
    if outliers is None:
        raise SchemeError("A scheme with outlier channels needs to know them (outliers).")
    wide = torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)
    wide[outliers.long()] = True
    size = x.abs()
    near = torch.where(wide, 0.0, size).amax(-1, keepdim=True) / 127.5
    far = torch.where(wide, size, 0.0).amax(-1, keepdim=True) / OUTLIER_MAX
    scale = torch.maximum(near, far)
    scale = torch.where(scale.isfinite(), torch.where(scale > 0, scale, 1.0), torch.nan)
    low = torch.where(wide, -OUTLIER_MAX - 1, INT8_MIN)
    high = torch.where(wide, OUTLIER_MAX, INT8_MAX)
    return torch.round(x / scale).nan_to_num(0.0).clamp(low, high).to(torch.int16), scale


def static_scale(absmax: float, dtype: torch.dtype, name: str = "input") -> Tensor:
    """(1,) the scale of inputs that were calibrated to lie within ±`absmax`, rounded up to `dtype` as a weight's is.

    Raises:
        NumericsError: it is too large for `dtype`.
    """
    return _stored(torch.tensor([absmax / 127.5]), dtype, name)


def _range(weight: Tensor, strategy: str) -> tuple[Tensor, Tensor]:
    if strategy == "channel":
        return torch.aminmax(weight, dim=1, keepdim=True)
    low, high = torch.aminmax(weight)
    return low.reshape(1), high.reshape(1)


def _stored(scale: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """`scale` rounded up to `dtype`, and kept away from zero: an all-zero row gets 1, a denormal range the tiniest normal.

    Denormals of float16 are used (a small weight keeps its levels): every device reads them; those of float32 are not.
    """
    info = torch.finfo(dtype)
    tiniest = max(info.tiny * info.eps, torch.finfo(torch.float32).tiny)
    scale = torch.where(scale > 0, scale.clamp(min=tiniest), torch.ones_like(scale))
    stored = scale.to(dtype)
    up = torch.nextafter(stored, torch.full_like(stored, torch.inf))
    stored = torch.where(stored.float() < scale, up, stored)
    if not bool(torch.isfinite(stored).all()):
        raise NumericsError(
            f"{name} has values so large that their scale does not fit {str(dtype).removeprefix('torch.')}; "
            "use bfloat16 or float32 as the base dtype."
        )
    return stored
