"""Calibration, search and certification: three disjoint parts of the data, chosen by a seed.

Equal inputs always land in the same part, so no text that was calibrated or searched on is certified on.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from autoquant.errors import DataError, reject_unknown
from autoquant.tasks.base import SPLITS

MINIMUM = {"calibration": 4, "search": 8, "certification": 20}
"""Fewest items a split can do with; fewer say nothing."""

UNDIVIDED = {"calibration": 0, "search": 0}
"""Sizes of data that are all for certification: for a task that models are only judged by."""

CALIBRATION = 256
"""Default size of the calibration split, unless that is more than a tenth of the data."""

SEARCH_SHARE = 0.3
"""Default share of the search split in what calibration leaves; certification gets the rest."""

SEARCH_ALONE = 2000
"""Default cap on the search split when certification has data of its own."""

Pool = tuple[tuple[str, ...], Sequence[Hashable]]
"""The splits that one source of data serves, and the key of every row of it."""


def pools(main: Sequence[Hashable], test: Sequence[Hashable] | None = None) -> list[Pool]:
    """One source for all three splits; with `test`, certification comes from that alone."""
    if test is None:
        return [(SPLITS, main)]
    return [(("calibration", "search"), main), (("certification",), test)]


def assign(
    sources: Sequence[Pool],
    seed: int,
    sizes: Mapping[str, int] | None = None,
    what: str = "rows",
    caps: Mapping[str, int] | None = None,
) -> dict[str, list[int]]:
    """Split → sorted row numbers; rows of all sources are numbered through, source after source.

    A row of an earlier source whose key is also in a later one is left out. Rows with equal keys stay together.

    Args:
        sizes: split → size that the user asks for.
        caps: split → largest size by default, where rows are dear.

    Raises:
        DataError: a split would be too small, or `sizes` asks for more than there is.
    """
    asked = check_sizes(sizes, least=0)
    undivided = UNDIVIDED.items() <= asked.items()
    chosen: dict[str, list[int]] = {}
    offset = shared = 0
    for place, (splits, keys) in enumerate(sources):
        later = {key for _, others in sources[place + 1 :] for key in others}
        groups: dict[Hashable, list[int]] = {}
        for row, key in enumerate(keys):
            if key not in later:
                groups.setdefault(key, []).append(offset + row)
        shared += len(keys) - sum(map(len, groups.values()))
        chosen |= _deal(splits, list(groups.values()), np.random.default_rng([seed, place]), asked, what, caps or {})
        offset += len(keys)
    for split, fewest in MINIMUM.items():
        least = int(split == "certification") if undivided else fewest
        if len(chosen[split]) < least:
            left_out = f", {shared} of them left out because the test data has them too" if shared else ""
            raise DataError(
                f"The {split} split has {len(chosen[split])} {what}, and {least} are the fewest that say anything. "
                f"The data has {offset} {what} in all{left_out}; give more data or other sizes: --sizes {split}={least}"
            )
    return chosen


def check_sizes(sizes: Mapping[str, int] | None, least: int = 1) -> dict[str, int]:
    """`sizes` if it maps splits to numbers of at least `least`. Raises DataError."""
    asked = dict(sizes or {})
    reject_unknown(asked, SPLITS, "--sizes", DataError)
    for split, size in asked.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise DataError(f"--sizes {split}={size} must be a positive whole number.")
    return asked


def _deal(
    splits: tuple[str, ...],
    groups: list[list[int]],
    rng: np.random.Generator,
    asked: Mapping[str, int],
    what: str,
    caps: Mapping[str, int],
) -> dict[str, list[int]]:
    total = sum(map(len, groups))
    needed = sum(asked.get(split, 0) for split in splits)
    if needed > total:
        raise DataError(f"--sizes asks for {needed} {what} in {', '.join(splits)}; there are {total} that can be used.")
    wanted = {
        split: size if split in asked else min(size, caps.get(split, size))
        for split, size in _sizes(splits, total, asked).items()
    }
    shuffled = iter([groups[i] for i in rng.permutation(len(groups))])
    dealt: dict[str, list[int]] = {}
    for split in splits:
        rows: list[int] = []
        while len(rows) < wanted[split] and (group := next(shuffled, None)) is not None:
            rows += group
        dealt[split] = sorted(rows[: wanted[split]])
    return dealt


def _sizes(splits: tuple[str, ...], total: int, asked: Mapping[str, int]) -> dict[str, int]:
    sizes = {split: asked[split] for split in splits if split in asked}
    left = total
    if "calibration" in splits:
        tenth = total if len(splits) == 1 else max(MINIMUM["calibration"], total // 10)
        sizes.setdefault("calibration", min(CALIBRATION, tenth))
        left -= sizes["calibration"]
    if "search" in splits and "search" not in sizes:
        if "certification" in splits:
            share = max(MINIMUM["search"], round(SEARCH_SHARE * left))
            sizes["search"] = max(min(share, left - asked.get("certification", 0)), 0)
        else:
            sizes["search"] = max(min(left, SEARCH_ALONE), 0)
    if "certification" in splits and "certification" not in sizes:
        sizes["certification"] = max(left - sizes.get("search", 0), 0)
    return sizes
