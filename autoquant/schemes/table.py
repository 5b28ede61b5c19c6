"""The table of schemes. A new scheme is one more entry here (and a runtime that supports it)."""

from __future__ import annotations

from autoquant.errors import SchemeError, pick
from autoquant.values import FLOAT_DTYPES, QuantizationArgs, Scheme

_WEIGHTS = {
    f"int{bits}-{strategy}-{'sym' if symmetric else 'asym'}": QuantizationArgs(strategy, bits, symmetric=symmetric)
    for bits, strategies in ((8, ("tensor", "channel")), (6, ("channel",)), (4, ("channel",)))
    for strategy in strategies
    for symmetric in (True, False)
}
_INPUTS = {
    "": None,
    "/a8-tensor": QuantizationArgs("tensor", dynamic=True),
    "/a8-token": QuantizationArgs("token", dynamic=True),
    "/a8-outlier": QuantizationArgs("token", dynamic=True, outliers=True),
    "/a8-static": QuantizationArgs("tensor", dynamic=False),
}

SCHEMES: dict[str, Scheme] = {
    **{name: Scheme(name, dtype=name) for name in FLOAT_DTYPES},
    **{
        w + a: Scheme(w + a, weights=weights, input=inputs)
        for w, weights in _WEIGHTS.items()
        for a, inputs in _INPUTS.items()
    },
}
"""Name → scheme: three float dtypes, and weights {int8 tensor, int8, int6 or int4 channel} × {sym, asym} × activations
{none (weight only), a8-tensor (dynamic, one scale a call), a8-token (dynamic, one a row), a8-outlier (the same, with 16 bits
for the calibrated outlier channels), a8-static (calibrated)}."""


def get_scheme(name: str) -> Scheme:
    """Raises SchemeError with the nearest valid name."""
    return pick(SCHEMES, name, "scheme", SchemeError)


def computed_as(scheme: Scheme) -> Scheme:
    """The scheme of 8 bits that the same kernels run: packed weights are expanded as they are loaded."""
    return SCHEMES["int8" + scheme.name[len("int8") :]] if scheme.is_packed else scheme


def project(scheme: Scheme, kind: str) -> Scheme:
    """The part of `scheme` that a layer of this kind can have: an embedding has no input to quantize."""
    if kind == "embedding" and scheme.input is not None:
        return SCHEMES[scheme.name.split("/")[0]]
    return scheme
