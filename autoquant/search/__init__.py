"""Find the best map: the problem as plain data, the surrogate, the Optuna study."""

from autoquant.search.ladder import finalists, ladder, preferred
from autoquant.search.problem import OBJECTIVES, Problem, make_problem, saving
from autoquant.search.spaces import Space, allowed, load_space
from autoquant.search.study import STRATEGIES, Outcome, open_study, run_search

__all__ = [
    "OBJECTIVES",
    "STRATEGIES",
    "Outcome",
    "Problem",
    "Space",
    "allowed",
    "finalists",
    "ladder",
    "load_space",
    "make_problem",
    "open_study",
    "preferred",
    "run_search",
    "saving",
]
