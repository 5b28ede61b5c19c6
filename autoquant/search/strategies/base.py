"""What a strategy is: a row of the table, made into an Optuna sampler. Our own propose a whole map at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from autoquant.search.ledger import FIXED, space_of, to_params
from autoquant.search.problem import Choice, Problem


@dataclass(frozen=True)
class Strategy:
    """A way to choose the next map.

    Attributes:
        about: one line for `autoquant list strategies`.
        make: (problem, seed) → sampler.
        guided: it reads the profile by itself. The others are warm-started with maps of the profile's front, too.
        limit: most maps that a search space may have; None for any number.
    """

    about: str
    make: Callable[[Problem, int], optuna.samplers.BaseSampler]
    guided: bool = False
    limit: int | None = None


class MapSampler(optuna.samplers.BaseSampler):
    """A sampler that proposes whole maps.

    `propose` may raise `Exhausted`, which comes out of `study.ask`.
    """

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        self.problem = problem
        self.seed = seed

    @abstractmethod
    def propose(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> tuple[str, Choice]:
        """(base dtype, choice) of a map that no trial has, from what stands in the study."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return space_of(self.problem)

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if FIXED in trial.system_attrs:  # an enqueued map: Optuna asks all the same
            return {}
        return to_params(self.problem, *self.propose(study, trial))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise NotImplementedError("every parameter is proposed together")
