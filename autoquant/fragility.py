"""How little does it take to change an item? Told by the float model's outputs alone, before any map is judged.

Noise is added to the outputs that were kept, at growing scales, and the items are scored again: what lies near a decision (a
label, a place in a ranking) changes first. That costs no pass of a model, and needs to know nothing of the task.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autoquant.tasks.base import Task

SCALES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Of the noise, in standard deviations of the outputs over the rows."""
DRAWS = (4, 24)
"""Of noise at each scale, at least and at most."""
NUMBERS = 2**18 * DRAWS[1]
"""Outputs that are drawn at each scale, about: a ranking of thousands of embeddings takes its time."""


def fragility(task: Task, split: str, reduced: Tensor, seed: int = 0) -> np.ndarray | None:
    """(items,) mean change of an item's value over all scales; None where noise does not tell one item from another.

    Args:
        reduced: what was kept of the float model's outputs, all rows of the split.
    """
    if not reduced.is_floating_point() or len(reduced) < 2:
        return None
    reduced = reduced.float()
    spread, generator = reduced.std(0), torch.Generator().manual_seed(seed)
    base = task.score(split, reduced, reduced)
    moved, draws = np.zeros(len(base)), min(max(NUMBERS // reduced.numel(), DRAWS[0]), DRAWS[1])
    for scale in SCALES:
        for _ in range(draws):
            noise = torch.randn(reduced.shape, generator=generator) * spread * scale
            moved += np.abs(task.score(split, reduced + noise, reduced) - base)
        if scale == SCALES[0] and np.mean(moved != 0) > 0.5:
            return None  # every item changes a little: values are no decisions
    return moved / (len(SCALES) * draws)
