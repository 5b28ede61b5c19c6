"""What happens when the surrogate is off: it is noticed, measured exactly and said."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from autoquant.search import items_read, open_study, run_search
from autoquant.search.ledger import Seen, as_refined, refined, space_of, to_params
from autoquant.search.refine import EVENT, PAIRS, noticed, refine_if_off
from tests import synthetic
from tests.synthetic import Judge


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def searched(theta: np.ndarray, path: Path) -> tuple[Judge, object, list[str], list[tuple[str, dict[str, str]]]]:
    problem = synthetic.make(len(theta), bases=("float32",))
    judged = Judge(problem, 0.2 * synthetic.scaled(problem, theta).score((3,) * len(theta)), theta)
    said: list[str] = []
    asked: list[tuple[str, dict[str, str]]] = []

    def measure(base: str, layers: dict[str, str]) -> tuple[float, int]:
        asked.append((base, layers))
        return judged.divergence(base, judged.choice(base, layers)), 64

    study = open_study(path, problem, "surrogate", 0)
    run_search(problem, judged, study, trials=20, measure=measure, say=said.append)
    return judged, study, said, asked


def test_a_profile_that_holds_is_left_alone(tmp_path: Path) -> None:
    _, study, said, asked = searched(np.zeros(6), tmp_path / "journal")
    assert not said and not asked and items_read(study) == 0


def test_a_profile_that_is_off_is_noticed_measured_and_said(tmp_path: Path) -> None:
    theta = np.array([2.5, 0.0, -2.0, 0.0, 2.2, 0.0])
    judged, study, said, asked = searched(theta, tmp_path / "journal")
    assert said and "times" not in said[0] and "as predicted" in said[0] and "measured" in said[0]
    assert all(sum(name != "float32" for name in layers.values()) == 1 for _, layers in asked), "one layer at a time"
    assert len(asked) == len({str(pair) for pair in asked}), "no pair is measured twice"
    events = [t.user_attrs[EVENT] for t in study.trials if EVENT in t.user_attrs]
    assert sum(e["pairs"] for e in events) == len(asked) and max(e["pairs"] for e in events) <= PAIRS
    assert items_read(study) == 64 * len(asked)
    now = as_refined(judged.problem, study)
    for group, measured in refined(study).items():
        place = [g.name for g in now.groups].index(group)
        for name, value in measured.items():
            option = now.options[place].index(name)
            alone = tuple(option if g == place else 0 for g in range(6))
            assert now.score(alone) == pytest.approx(value) == judged.truth.score(alone)


def test_what_was_measured_is_there_after_a_restart(tmp_path: Path) -> None:
    theta = np.array([2.5, 0.0, -2.0, 0.0, 2.2, 0.0])
    judged, study, *_ = searched(theta, tmp_path / "journal")
    again = open_study(tmp_path / "journal", judged.problem, "surrogate", 0)
    assert refined(again) == refined(study) != {}


def test_what_the_items_not_read_explain_is_not_acted_on(tmp_path: Path) -> None:
    problem = synthetic.make(6, bases=("float32",))
    study = open_study(tmp_path / "journal", problem, "surrogate", 0)
    choice = (3,) * 6
    predicted = problem.score(choice)
    asked: list[str] = []

    def measure(base: str, layers: dict[str, str]) -> tuple[float, int]:
        asked.append(base)
        return 0.1, 64

    seen = Seen("float32", choice, 2.0, -0.1, 1.4 * predicted, predicted)
    assert refine_if_off(problem, study, replace(seen, divergence_error=0.2 * predicted), measure) == {} and not asked
    for error in (0.0, 0.1 * predicted):
        assert refine_if_off(problem, study, replace(seen, divergence_error=error), measure)[EVENT][
            "ratio"
        ] == pytest.approx(1.4)
    assert asked


@pytest.mark.parametrize(("factor", "more"), [(1.0, False), (1.2, False), (3.0, True), (0.5, True)])
def test_layers_that_alone_are_as_predicted_are_not_measured_again(factor: float, more: bool, tmp_path: Path) -> None:
    """It is together then that they do more harm."""
    problem = synthetic.make(30, bases=("float32",))
    study = open_study(tmp_path / "journal", problem, "surrogate", 0)
    asked: list[int] = []
    seen = Seen("float32", (3,) * 30, 2.0, 0.1, 3 * problem.score((3,) * 30), problem.score((3,) * 30))

    def measure(base: str, layers: dict[str, str]) -> tuple[float, int]:
        asked.append(1)
        return factor * problem.score(problem.choice_of(base, layers)), 64

    first = refine_if_off(problem, study, seen, measure)
    assert first[EVENT]["pairs"] == len(asked) > 0 and first[EVENT]["alone"] == pytest.approx(factor)
    told = {
        "margin": 0.1,
        "divergence": seen.divergence,
        "predicted_divergence": 0.1,
        "drop": 0.1,
        "ms": 1.0,
        "bytes": 9,
    }
    trial = create_trial(
        params=to_params(problem, "float32", seen.choice),
        distributions=space_of(problem),
        value=1.0,
        user_attrs=told | first,
    )
    study.add_trial(trial)
    event = refine_if_off(problem, study, replace(seen, choice=(2,) * 30, divergence=1e3), measure)[EVENT]
    assert (event["pairs"] > 0) == more and sum(asked) == first[EVENT]["pairs"] + event["pairs"]
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={EVENT: event}))
    assert ("together they do" in str(noticed(study.trials[-1]))) != more


def test_after_maps_that_a_search_begins_with_nothing_is_measured(tmp_path: Path) -> None:
    """Corrections are learned from them first."""
    problem = synthetic.make(6, bases=("float32",))
    study = open_study(tmp_path / "journal", problem, "surrogate", 0)
    choice = (3,) * 6
    predicted = problem.score(choice)
    seen = Seen("float32", choice, 2.0, -0.1, 3 * predicted, predicted)

    def measure(base: str, layers: dict[str, str]) -> tuple[float, int]:
        return 0.1, 64

    assert refine_if_off(problem, study, replace(seen, proposed=False), measure) == {}
    assert refine_if_off(problem, study, seen, measure)[EVENT]["pairs"] > 0
