"""Find the best map: the problem as plain data, strategies that propose, the race that judges, the Optuna study."""

from autoquant.search.front import front
from autoquant.search.ladder import finalists, ladder, preferred
from autoquant.search.problem import OBJECTIVES, Problem, make_problem, options_of, saving
from autoquant.search.refine import items_read
from autoquant.search.spaces import Space, allowed, load_space
from autoquant.search.strategies import STRATEGIES
from autoquant.search.study import Outcome, check_size, open_study, run_search, warm_starts

__all__ = [
    "OBJECTIVES",
    "STRATEGIES",
    "Outcome",
    "Problem",
    "Space",
    "allowed",
    "check_size",
    "finalists",
    "front",
    "items_read",
    "ladder",
    "load_space",
    "make_problem",
    "open_study",
    "options_of",
    "preferred",
    "run_search",
    "saving",
    "warm_starts",
]
