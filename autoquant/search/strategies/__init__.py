"""How the next map is chosen. One file a kind; `STRATEGIES` is the table of them."""

from __future__ import annotations

from autoquant.search.strategies.base import MapSampler, Strategy
from autoquant.search.strategies.draws import NSGA2, RANDOM, TPE
from autoquant.search.strategies.exhaustive import EXHAUSTIVE
from autoquant.search.strategies.gp import GP
from autoquant.search.strategies.greedy import GREEDY
from autoquant.search.strategies.surrogate import SURROGATE

__all__ = ["STRATEGIES", "MapSampler", "Strategy"]

STRATEGIES: dict[str, Strategy] = {
    "surrogate": SURROGATE,
    "tpe": TPE,
    "nsga2": NSGA2,
    "gp": GP,
    "greedy": GREEDY,
    "random": RANDOM,
    "exhaustive": EXHAUSTIVE,
}
"""The word behind --strategy → its strategy."""
