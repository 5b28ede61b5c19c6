"""What trials show of the profile is laid to groups and schemes, and to what was measured least."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoquant.search.correction import GROUP_DEVIATION, NOISE_DEVIATION, SCHEME_DEVIATION, corrected
from autoquant.search.problem import Problem
from tests import synthetic

SHARED = ("int8-channel-sym/a8-token", "int8-channel-sym/a8-static", "int8-tensor-sym/a8-static")


def factors(now: Problem, problem: Problem) -> np.ndarray:
    """(groups, options) that the scores were multiplied by."""
    return np.array([own[1:] / before[1:] for own, before in zip(now.scores, problem.scores, strict=True)])


def test_nothing_is_learned_from_nothing() -> None:
    problem = synthetic.make(3)
    assert corrected(problem, [], [], []) is problem
    assert corrected(problem, [(0, 0, 0)], [0.0], [0.0]) is problem


def test_an_observation_as_predicted_corrects_nothing() -> None:
    problem = synthetic.make(3)
    choices = [(1, 2, 3), (3, 3, 3)]
    now = corrected(problem, choices, [problem.score(c) for c in choices], [0.0, 0.0])
    assert np.allclose(factors(now, problem), 1.0, atol=1e-9)


def test_planted_corrections_are_recovered() -> None:
    problem = synthetic.make(4)
    planted = np.array([0.8, -0.6, 0.3, -0.2])
    truth = synthetic.scaled(problem, planted)
    alone = [tuple(3 if i == j else 0 for j in range(4)) for i in range(4)]
    now = corrected(problem, alone, [truth.score(c) + 0.01 for c in alone], [0.01] * 4)
    assert [now.score(c) for c in alone] == pytest.approx([truth.score(c) for c in alone], rel=0.02)
    # The posterior mean of log factors: of each group by itself, and of the weights and the inputs that all of them share.
    prior = GROUP_DEVIATION**2 * np.eye(4) + 2 * SCHEME_DEVIATION**2
    shrunk = prior @ np.linalg.solve(prior + NOISE_DEVIATION**2 * np.eye(4), planted)
    assert np.allclose(np.log(factors(now, problem)[:, 2]), shrunk, atol=1e-3)


def test_one_sum_is_shared_out_and_predicts_itself_afterwards() -> None:
    problem = synthetic.make(4)
    choice = (3, 3, 3, 3)
    now = corrected(problem, [choice], [2 * problem.score(choice)], [0.0])
    found = factors(now, problem)[:, 2]
    assert (found >= 1).all() and now.score(choice) == pytest.approx(2 * problem.score(choice), rel=0.05)
    assert np.argmax(found) == np.argmax([s[3] for s in problem.scores]), "the largest share takes the largest part"


def test_a_scheme_that_harms_more_than_predicted_is_told_from_one_map_of_it() -> None:
    """And with it what rounds inputs the same way; the other schemes of the same groups are not blamed."""
    problem = synthetic.make(40, schemes=SHARED)
    good, bad = (1,) * 40, (2,) * 40
    now = corrected(problem, [good, bad], [problem.score(good), 4 * problem.score(bad)], [0.0, 0.0])
    told = np.median(factors(now, problem), axis=0)
    assert now.score(bad) == pytest.approx(4 * problem.score(bad), rel=0.05)
    assert told[0] == pytest.approx(1.0, abs=0.2) and told[1] > 2.5 and told[2] > 2.0


def test_what_was_measured_is_not_corrected_with_its_scheme() -> None:
    problem = synthetic.make(40, schemes=SHARED)
    measured = replace(problem, exact=frozenset((group, SHARED[1]) for group in range(20)))
    bad = (2,) * 40
    now = corrected(measured, [bad], [3 * measured.score(bad)], [0.0])
    told = np.median(factors(now, measured)[:20, 1]), np.median(factors(now, measured)[20:, 1])
    assert now.score(bad) == pytest.approx(3 * measured.score(bad), rel=0.1) and told[1] > 1.5 * told[0]


@pytest.mark.parametrize("observed", [0.0, 1e-30, 1e6])
def test_absurd_observations_give_finite_corrections(observed: float) -> None:
    found = factors(corrected(synthetic.make(3), [(1, 1, 1)], [observed], [0.0]), synthetic.make(3))
    assert np.isfinite(found).all() and (found > 0).all()
