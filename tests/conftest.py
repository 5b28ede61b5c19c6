"""One thread: the models are tiny, and waking a second thread costs more than it saves. No graphs but where they are the
subject: capturing one takes longer than a tiny model runs."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
os.environ.setdefault("AUTOQUANT_GRAPH", "0")
os.environ["AUTOQUANT_STATE"] = "none"  # tests leave nothing with the user, and are charged for nothing
settings.register_profile("small", max_examples=60, deadline=None, derandomize=True, database=None)
settings.load_profile("small")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: where files are shared out to processes (`-n`), none is left to run alone at the end."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, "readme" not in item.path.name))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Each process holds torch, and up to a gigabyte while it builds models."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
