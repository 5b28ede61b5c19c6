"""Find the best map: the problem as plain data, strategies that propose, the race that judges, the Optuna study."""

from autoquant.search.crew import Processes, leave_with_parent
from autoquant.search.front import front
from autoquant.search.judging import Outcome
from autoquant.search.ladder import finalists, ladder, preferred
from autoquant.search.problem import OBJECTIVES, Problem, make_problem, options_of, saving
from autoquant.search.refine import items_read
from autoquant.search.spaces import Space, allowed, load_space
from autoquant.search.starts import check_size, starting_maps, warm_starts
from autoquant.search.storages import alone, check_storage, check_url, mask, storage_environment
from autoquant.search.strategies import STRATEGIES
from autoquant.search.study import STUDY_NAME, describe_study, join_study, open_study, run_search, work

__all__ = [
    "OBJECTIVES",
    "STRATEGIES",
    "STUDY_NAME",
    "Outcome",
    "Problem",
    "Processes",
    "Space",
    "allowed",
    "alone",
    "check_size",
    "check_storage",
    "check_url",
    "describe_study",
    "finalists",
    "front",
    "items_read",
    "join_study",
    "ladder",
    "leave_with_parent",
    "load_space",
    "make_problem",
    "mask",
    "open_study",
    "options_of",
    "preferred",
    "run_search",
    "saving",
    "starting_maps",
    "storage_environment",
    "warm_starts",
    "work",
]
