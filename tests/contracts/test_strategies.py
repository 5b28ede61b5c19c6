"""What every search strategy promises. A new one joins by being in `STRATEGIES`; no model is needed here."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from autoquant.errors import UsageError
from autoquant.search import STRATEGIES, check_size, open_study, run_search, warm_starts
from autoquant.search.lead import Lead
from autoquant.search.ledger import space_of, to_params
from autoquant.search.starts import starting_maps
from autoquant.values import Candidate
from tests import synthetic
from tests.synthetic import Judge

TRIALS = 10


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; only a power cut could, and none is tried here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def judge(groups: int = 4, limit: float = 0.03) -> Judge:
    return Judge(synthetic.make(groups), limit)


def search(
    judged: Judge, path: Path, strategy: str, trials: int = TRIALS, seed: int = 0
) -> tuple[list[Candidate], str]:
    return run_search(judged.problem, judged, open_study(path, judged.problem, strategy, seed), trials=trials)


def maps(found: list[Candidate]) -> list[tuple[str, tuple]]:
    """Of all that were evaluated: a map that cannot beat the best by its price is skipped."""
    return [(c.base_dtype, tuple(c.layers.items())) for c in found if c.state != "skipped"]


def timeless(found: list[Candidate]) -> list[Candidate]:
    return [replace(c, seconds=0.0) for c in found]


def test_the_same_seed_gives_the_same_trials(strategy: str, tmp_path: Path) -> None:
    one, two = (search(judge(), tmp_path / f"{number}.journal", strategy)[0] for number in range(2))
    assert timeless(one) == timeless(two) and one


def test_no_quantization_and_uniform_maps_come_first(strategy: str, tmp_path: Path) -> None:
    found, _ = search(judge(), tmp_path / "journal", strategy)
    assert [c.label for c in found[:2]] == ["float32", "bfloat16"]
    assert all(set(c.layers.values()) == {c.base_dtype} for c in found[:2])
    uniform = [c for c in found if c.label.startswith("uniform")]
    assert uniform and all(len(set(c.layers.values())) == 1 and c.origin == "enqueued" for c in uniform)


def test_no_map_is_evaluated_twice(strategy: str, tmp_path: Path) -> None:
    judged = judge(2)  # 32 maps: whoever draws at random would
    found, _ = search(judged, tmp_path / "journal", strategy, trials=30)
    assert len(set(judged.asked)) == len(judged.asked) == len(maps(found)) > 5


def test_candidates_hold_what_was_measured(strategy: str, tmp_path: Path) -> None:
    judged = judge()
    found, _ = search(judged, tmp_path / "journal", strategy)
    assert maps(found) == judged.asked
    for candidate in (c for c in found if c.state == "complete"):
        choice = judged.choice(candidate.base_dtype, dict(candidate.layers))
        assert candidate.bytes == int(judged.problem.total_bytes(candidate.base_dtype, choice))
        assert candidate.ms == pytest.approx(judged.ms(candidate.base_dtype, choice))
        assert candidate.feasible == (judged.divergence(candidate.base_dtype, choice) <= judged.limit)
        assert candidate.saving == pytest.approx(judged.problem.saving(candidate.ms, candidate.bytes), rel=1e-3)


def test_all_starting_maps_are_evaluated_even_if_nothing_is_left_to_propose(strategy: str, tmp_path: Path) -> None:
    judged = Judge(synthetic.make(1), 1.0)
    found, _ = search(judged, tmp_path / "journal", strategy, trials=5)
    assert {c.base_dtype for c in found if not c.quantized} == {"float32", "bfloat16"}
    assert any(c.label.startswith("uniform") for c in found)


def test_a_failing_map_is_recorded_with_its_reason_and_the_search_goes_on(strategy: str, tmp_path: Path) -> None:
    errors = {3: MemoryError("too large"), 4: RuntimeError("no kernel"), 6: KeyError("weight")}

    def fail(number: int) -> None:
        if number in errors:
            raise errors[number]

    judged = replace(judge(), before=fail, asked=[])
    found, _ = search(judged, tmp_path / "journal", strategy)
    evaluated = [c for c in found if c.state != "skipped"]
    failed = {number: c.reason for number, c in enumerate(evaluated, 1) if c.state == "failed"}
    assert failed == {3: "MemoryError: too large", 4: "RuntimeError: no kernel", 6: "KeyError: 'weight'"}
    assert not any(c.feasible for c in found if c.state == "failed")
    assert maps(found) == judged.asked and len(found) > 6


def test_a_map_that_gives_nan_or_infinity_has_failed(strategy: str, tmp_path: Path) -> None:
    judged = judge()

    def evaluate(base: str, layers: dict[str, str]):
        outcome = judged(base, layers)
        return replace(outcome, drop=math.nan, margin=math.inf) if len(judged.asked) == 4 else outcome

    study = open_study(tmp_path / "journal", judged.problem, strategy, 0)
    found, _ = run_search(judged.problem, evaluate, study, trials=TRIALS)
    assert [c.number for c in found if c.state == "failed"] == [3]
    assert found[3].reason == "NaN or infinity: drop, margin" and len(found) > 4


def test_ctrl_c_leaves_the_study_usable_and_the_map_comes_again(strategy: str, tmp_path: Path) -> None:
    def interrupt(number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt

    stopped, again = replace(judge(), before=interrupt, asked=[]), judge()
    with pytest.raises(KeyboardInterrupt):
        search(stopped, tmp_path / "journal", strategy)
    found, _ = search(again, tmp_path / "journal", strategy)
    assert len(stopped.asked) == 5 and stopped.asked[-1] in again.asked
    assert not set(stopped.asked[:-1]) & set(again.asked)
    assert sorted(maps(found)) == sorted({*stopped.asked, *again.asked})
    assert all(c.state in ("complete", "skipped") for c in found) and len(maps(found)) <= TRIALS


@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_killed_search_resumes_without_losing_or_repeating_a_map(strategy: str, after: int, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    killed, again = judge(), judge()
    if after:
        search(killed, path, strategy, trials=after)
    study = open_study(path, killed.problem, strategy, 0)
    if not after:
        run_search(killed.problem, killed, study, trials=0)
    running = study.ask(space_of(killed.problem))  # the process dies here: a trial is left running
    found, _ = search(again, path, strategy)
    assert not set(killed.asked) & set(again.asked)
    assert sorted(maps(found)) == sorted(killed.asked + again.asked) and len(maps(found)) <= TRIALS
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    params = [t.params for t in study.trials if t.state in done]
    assert running.params in params, "the map that was being evaluated is evaluated after all, or is too dear by now"
    assert {c.base_dtype for c in found if not c.quantized} == {"float32", "bfloat16"}


def test_a_resumed_run_draws_on_and_not_the_same_again(tmp_path: Path) -> None:
    judged = judge(8)
    first, _ = search(judged, tmp_path / "journal", "random", trials=10)
    found, _ = search(judged, tmp_path / "journal", "random", trials=14)
    assert len(maps(first)) == 10 and len(maps(found)) == 14, "65536 maps: nobody draws one twice by chance"


def test_a_trial_that_died_before_its_map_was_decided_is_harmless(strategy: str, tmp_path: Path) -> None:
    judged = judge()
    search(judged, tmp_path / "journal", strategy, trials=7)
    study = open_study(tmp_path / "journal", judged.problem, "random", 0)
    trial = study.ask()
    trial.suggest_categorical("layer0", judged.problem.options[0])
    found, _ = search(judge(), tmp_path / "journal", strategy)
    assert len(found) >= 7 and all(c.state in ("complete", "skipped") for c in found)


@pytest.mark.parametrize("written", [0, 1, 2], ids=["nothing", "the base dtype", "and a layer"])
def test_a_start_whose_process_died_before_it_wrote_the_map_is_evaluated(written: int, tmp_path: Path) -> None:
    judged = judge()
    problem, path = judged.problem, tmp_path / "journal"
    study = open_study(path, problem, "random", 0)
    first, *others = starting_maps(problem)[::-1]
    Lead(problem, study, TRIALS).begin([first, *others])
    label, base, choice = first
    number, fixed = study._pop_waiting_trial_id(), to_params(problem, base, choice)
    assert number is not None and any(choice)
    for name, kind in list(space_of(problem).items())[:written]:
        study._storage.set_trial_param(number, name, kind.to_internal_repr(fixed[name]), kind)
    found, _ = run_search(
        problem, judged, open_study(path, problem, "random", 0), trials=TRIALS, starts=[first, *others]
    )
    (one,) = [c for c in found if c.label == label]
    assert one.state == "complete" and one.layers == problem.layers(base, choice)
    assert {name for name, *_ in others} <= {c.label for c in found}


def test_a_map_that_kills_the_process_twice_is_given_up(strategy: str, tmp_path: Path) -> None:
    judged = judge()

    def die(number: int) -> None:
        if judged.asked[-1][1][0][1] == "int8-channel-sym":
            raise SystemExit  # as good as killed: nothing is recorded of the map

    judged.before = die
    for _ in range(2):
        with pytest.raises(SystemExit):
            search(judged, tmp_path / "journal", strategy, trials=7)
    judged.before = lambda number: None
    found, _ = search(judged, tmp_path / "journal", strategy, trials=7)
    (given_up,) = [c for c in found if c.state == "failed"]
    assert "killed twice" in given_up.reason and given_up.label.startswith("uniform")
    assert len(judged.asked) == len(set(judged.asked)) + 1 == len(maps(found)) + 1


def test_half_a_line_at_the_end_of_the_journal_is_no_obstacle(strategy: str, tmp_path: Path) -> None:
    path, judged = tmp_path / "journal", judge()
    before, _ = search(judged, path, strategy, trials=6)
    with open(path, "a") as file:
        file.write('{"op_code": 6, "wor')
    found, _ = search(judge(), path, strategy)
    assert timeless(found)[:6] == timeless(before) and len(found) > 6
    assert timeless(search(judge(), path, strategy)[0]) == timeless(found), "the journal can be read again"


def test_a_finished_search_evaluates_nothing_more(strategy: str, tmp_path: Path) -> None:
    judged, again = judge(), judge()
    found, reason = search(judged, tmp_path / "journal", strategy, trials=7)
    assert reason == "all 7 trials done" and len(maps(found)) == 7
    assert search(again, tmp_path / "journal", strategy, trials=7)[0] == found and not again.asked


def test_time_is_a_reason_to_end(strategy: str, tmp_path: Path) -> None:
    judged = judge()
    study = open_study(tmp_path / "journal", judged.problem, strategy, 0)
    found, reason = run_search(judged.problem, judged, study, trials=TRIALS, max_seconds=-1)
    assert found == [] and reason == "time is up" and not judged.asked


def test_each_trial_is_told_at_once(strategy: str, tmp_path: Path) -> None:
    judged = judge()
    told: list[int] = []
    study = open_study(tmp_path / "journal", judged.problem, strategy, 0)
    run_search(judged.problem, judged, study, trials=6, on_trial=lambda new, found: told.append(len(maps(found))))
    assert told == [1, 2, 3, 4, 5, 6]


def test_the_best_found_is_at_least_as_good_as_any_starting_map(strategy: str, tmp_path: Path) -> None:
    found, _ = search(judge(), tmp_path / "journal", strategy)
    feasible = [c.saving for c in found if c.feasible]
    assert max(feasible) >= max(c.saving for c in found if c.feasible and c.origin == "enqueued")
    assert os.path.getsize(tmp_path / "journal") > 0


def test_a_cold_search_begins_with_nothing_and_finds_something(strategy: str, tmp_path: Path) -> None:
    judged = judge()
    study = open_study(tmp_path / "journal", judged.problem, strategy, 0)
    found, _ = run_search(judged.problem, judged, study, trials=12, starts=())
    assert maps(found) == judged.asked and judged.asked
    assert all(c.origin == "proposed" for c in found)


def test_a_warm_search_of_who_does_not_know_the_profile_begins_with_its_front(strategy: str) -> None:
    problem = synthetic.make(6)
    plain, warm = starting_maps(problem), warm_starts(problem, strategy)
    assert warm[: len(plain)] == plain
    assert (len(warm) > len(plain)) == (not STRATEGIES[strategy].guided)
    assert len({(base, choice) for _, base, choice in warm}) == len(warm)


def test_a_map_that_cannot_beat_the_best_is_skipped_with_its_reason(tmp_path: Path) -> None:
    judged = judge(8, limit=10.0)  # the uniform map that saves most is within the budget: chance hardly beats it
    found, reason = search(judged, tmp_path / "journal", "random", trials=20)
    assert "100 maps in a row" in reason
    skipped = [c for c in found if c.state == "skipped"]
    assert skipped and all("the best so far saves" in c.reason and not c.feasible for c in skipped)
    assert len(judged.asked) == len(found) - len(skipped) <= 20
    assert not {(c.base_dtype, tuple(c.layers.items())) for c in skipped} & set(judged.asked)


def test_who_tries_everything_finds_the_best_and_says_when_it_is_too_much(tmp_path: Path) -> None:
    judged = judge(3)
    found, reason = search(judged, tmp_path / "journal", "exhaustive", trials=10**6)
    assert reason == "no map that was not tried promises more"
    assert max(c.saving for c in found if c.feasible) == pytest.approx(judged.best(), rel=1e-3)
    with pytest.raises(UsageError, match="surrogate"):
        check_size("exhaustive", ("float32",), [("float", "a", "b", "c")] * 40)
    check_size("surrogate", ("float32",), [("float", "a", "b", "c")] * 400)
    check_size("exhaustive", ("float32",), [("float", "a", "b", "c")] * 6)


def test_greedy_goes_one_layer_at_a_time(tmp_path: Path) -> None:
    judged = judge(5)
    study = open_study(tmp_path / "journal", judged.problem, "greedy", 0)
    found, _ = run_search(judged.problem, judged, study, trials=40, starts=())
    before: set[str] = set()
    for candidate in found:
        now = {name for name, scheme in candidate.layers.items() if scheme != candidate.base_dtype}
        assert len(now - before) <= 1
        before = now if candidate.feasible else before
    assert max(c.saving for c in found if c.feasible) > 0.9 * judged.best()
