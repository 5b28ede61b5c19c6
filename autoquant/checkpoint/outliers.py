"""Outlier channels as the configs of checkpoints hold them: layer → channel numbers, under the key `outliers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoquant.errors import CheckpointError
from autoquant.schemes import OUTLIER_COUNTS
from autoquant.values import Scheme
from autoquant.values.outliers import from_text, to_text

KEY = "outliers"


def written(schemes: Mapping[str, Scheme], outliers: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What a config says of them; nothing if no layer has any."""
    found = {name: to_text(outliers[name]) for name, scheme in schemes.items() if scheme.has_outliers}
    return {KEY: found} if found else {}


def read(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """What `written` put there.

    Raises:
        CheckpointError: it is something else.
    """
    given = config.get(KEY) or {}
    found = {str(name): from_text(text) for name, text in given.items()} if isinstance(given, Mapping) else {"": None}
    if None in found.values():
        raise CheckpointError(f"{where}: '{KEY}' must map layer names to channel numbers. Write the checkpoint again.")
    return {name: channels for name, channels in found.items() if channels is not None}


def outlier_problem(channels: Sequence[int], inputs: int) -> str | None:
    """What the outlier channels of a layer with this many inputs have to be, if these are not that."""
    good = len(channels) in OUTLIER_COUNTS and len(set(channels)) == len(channels)
    if good and all(0 <= channel < inputs for channel in channels):
        return None
    return f"{', '.join(map(str, OUTLIER_COUNTS[:-1]))} or {OUTLIER_COUNTS[-1]} different numbers below {inputs}"
