"""Optuna's own samplers, which see a categorical parameter a layer and know nothing of the profile."""

from __future__ import annotations

import optuna

from autoquant.search.problem import Problem
from autoquant.search.strategies.base import Strategy

STARTUP = 4
"""Random draws before TPE models anything: the maps that every search begins with tell it more."""
POPULATION = 8
"""Of NSGA-II: a generation must fit several times into a search of some dozen trials."""


def _tpe(problem: Problem, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)


def _nsga2(problem: Problem, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)


def _random(problem: Problem, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


TPE = Strategy("Optuna's tree-structured Parzen estimator, a categorical parameter a layer", _tpe)
NSGA2 = Strategy("Optuna's NSGA-II with constrained domination, a categorical parameter a layer", _nsga2)
RANDOM = Strategy("every layer by chance", _random)
