"""The surrogate is exact: checked against trying every map."""

from __future__ import annotations

import ctypes
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autoquant.search import surrogate
from autoquant.search.problem import Choice, Problem
from autoquant.search.surrogate import solve, solve_safest
from tests import synthetic


def every_choice(problem: Problem) -> list[Choice]:
    return list(itertools.product(*(range(len(options)) for options in problem.options)))


def value(problem: Problem, base: str, choice: Choice) -> float:
    return problem.saving(problem.total_ms(base, choice), problem.total_bytes(base, choice))


def brute(problem: Problem, base: str, allowance: float) -> float | None:
    fits = [c for c in every_choice(problem) if problem.score(c) <= allowance]
    return max((value(problem, base, c) for c in fits), default=None)


@pytest.mark.parametrize("objective", ["latency", "memory", "balanced"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.7, math.inf])
def test_the_solution_is_the_best_of_all(objective: str, share: float) -> None:
    for seed in range(3):
        problem = synthetic.make(4, seed=seed, objective=objective)
        allowance = share if math.isinf(share) else share * problem.score((3, 3, 3, 3))
        found = solve(problem, "bfloat16", allowance)
        expected = brute(problem, "bfloat16", allowance)
        assert found is not None and expected is not None and problem.score(found) <= allowance * (1 + 1e-6) + 1e-12
        # Times are told apart up to a timing noise of 1% a layer.
        assert value(problem, "bfloat16", found) >= expected * 0.99


def test_corrections_change_what_is_allowed() -> None:
    problem = synthetic.scaled(synthetic.make(4), np.array([3.0, -3.0, 0.0, 0.0]))
    allowance = 0.2 * problem.score((3, 3, 3, 3))
    found = solve(problem, "float32", allowance)
    expected = brute(problem, "float32", allowance)
    assert found is not None and expected is not None and problem.score(found) <= allowance * (1 + 1e-6)
    assert value(problem, "float32", found) >= expected * 0.99


@pytest.mark.parametrize("objective", ["latency", "memory", "balanced"])
@pytest.mark.parametrize("worth", [1.0, 1.005])
def test_the_safest_of_what_saves_as_much_is_found(objective: str, worth: float) -> None:
    for seed in range(3):
        problem = synthetic.make(4, seed=seed, objective=objective)
        best = (3, 2, 3, 3)
        least = value(problem, "bfloat16", best) / worth
        found = solve_safest(problem, "bfloat16", best, worth)
        assert found is not None and value(problem, "bfloat16", found) >= least * (1 - 1e-6)
        # The tangent at the best one leaves out what saves as much only by being far from it.
        fits = [c for c in every_choice(problem) if value(problem, "bfloat16", c) >= least * 1.002]
        assert problem.score(found) <= min(map(problem.score, [best, *fits])) * (1 + 1e-6)
        assert solve_safest(problem, "bfloat16", best, worth, tried=[found]) != found


def test_choices_that_were_tried_are_cut_off_one_after_the_other() -> None:
    problem = synthetic.make(2)
    tried: list[Choice] = []
    while (found := solve(problem, "float32", math.inf, tried=tried)) is not None:
        assert found not in tried
        tried.append(found)
    assert sorted(tried) == sorted(every_choice(problem)), "every map comes once, then none"
    values = [value(problem, "float32", choice) for choice in tried]
    assert all(later <= earlier * 1.01 for earlier, later in itertools.pairwise(values)), "best first"


def test_nothing_fits_below_zero() -> None:
    problem = synthetic.make(2)
    assert solve(problem, "float32", 0.0) == (0, 0)
    assert solve(problem, "float32", 0.0, tried=[(0, 0)]) is None


def test_equal_times_are_told_apart_by_their_divergence() -> None:
    problem = synthetic.make(3, objective="latency")
    ms = tuple(np.array([t[0], t[0] / 2, t[0] / 2 * 1.0001, t[0] / 2]) for t in problem.ms["float32"])
    problem = replace(problem, ms={"float32": ms, "bfloat16": ms})
    assert solve(problem, "float32", math.inf) == (1, 1, 1)


def test_debugging_of_the_solver_stays_out_of_the_output(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """It is C's own stdout that is printed to, which is flushed when the process ends."""
    solved = surrogate.milp

    def chatty(*args: Any, **options: Any) -> Any:
        libc = ctypes.CDLL(None)
        libc.puts(b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();")
        libc.puts(b"something else")
        print("and Python's", flush=True)
        return solved(*args, **options)

    monkeypatch.setattr(surrogate, "milp", chatty)
    print("before")
    assert solve(synthetic.make(4), "bfloat16", math.inf) is not None
    print("after")
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "before" and said[-1] == "after" and not any("Highs" in line for line in said)
    assert {"something else", "and Python's"} < set(said)
