"""Items that share something (a document, a passage, an author) are not independent: which of them belong together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from autoquant.tasks.splitting import Pool, pools

CLUSTER_ROLE = "cluster"
"""Role of a table's column whose equal values make a cluster; it has no usual names, only `--columns cluster=NAME`."""


def components(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """For each item the number of its connected component, where items that share any key are connected.

    Numbers count from 0 in the order of first appearance.
    """
    parent = list(range(len(keys)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    owner: dict[Hashable, int] = {}
    for place, own in enumerate(keys):
        for key in own:
            first, second = root(owner.setdefault(key, place)), root(place)
            parent[max(first, second)] = min(first, second)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(place), len(numbers)) for place in range(len(keys))]


def numbered(keys: Sequence[Iterable[Hashable]]) -> np.ndarray | None:
    """`components` as an array (items,), or None when no two items share anything."""
    found = np.array(components(keys), int)
    return None if len(found) == 0 or found.max() == len(found) - 1 else found


def clustered_pools(
    main: Sequence[Hashable], test: Sequence[Hashable] | None, clusters: Sequence[Hashable] | None
) -> list[Pool]:
    """`pools` in which rows of one cluster stay together as equal rows do, so that no cluster is in two splits.

    Args:
        clusters: the cluster of each row of `main` and then of `test`; None when there are none.
    """
    if clusters is None:
        return pools(main, test)
    every = [*main, *(test or ())]
    joined = components([(("row", key), ("cluster", own)) for key, own in zip(every, clusters, strict=True)])
    return pools(joined[: len(main)], None if test is None else joined[len(main) :])


def joined(
    main: Sequence[Hashable] | None, rows: int, test: Sequence[Hashable] | None, test_rows: int
) -> list[Hashable] | None:
    """Clusters of the rows of `main` and then of `test`; a source without a cluster column has one of each row."""
    if main is None and test is None:
        return None
    first = main if main is not None else [("main", row) for row in range(rows)]
    return [*first, *(test if test is not None else [("test", row) for row in range(test_rows)])]
