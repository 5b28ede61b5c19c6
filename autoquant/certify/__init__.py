"""Prove the budget on data that the search never saw: bounds on a paired drop, and the fixed-sequence test."""

from autoquant.certify.bounds import Bound, bets_needed, betting_bounds, bootstrap_bounds, items_needed
from autoquant.certify.judge import judge, paired_drop
from autoquant.certify.sequence import DropSequence

__all__ = [
    "Bound",
    "DropSequence",
    "bets_needed",
    "betting_bounds",
    "bootstrap_bounds",
    "items_needed",
    "judge",
    "paired_drop",
]
