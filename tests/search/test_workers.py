"""Many processes on one study: no map lost, none twice, whoever is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from search.drill import NAME, Drill, Fork, run_with_kills
from search.postgres import Server

from autoquant.errors import AutoquantError, UsageError
from autoquant.search import Outcome, alone, join_study, lead, open_study, roll, run_search, work
from autoquant.search.judging import BEGUN, judge_trial
from autoquant.search.ledger import WORKER, space_of, write
from autoquant.search.study import work_once
from tests import synthetic

NOTHING_WRONG = {"lost": 0, "doubled": 0, "never judged, but told": 0}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats of tests; and a killed process loses nothing that it wrote, only a power cut could."""
    monkeypatch.setattr(roll, "BEAT", 0.5)
    monkeypatch.setattr(roll, "SILENCE", 4.0)
    monkeypatch.setattr(lead, "DEATHS", lead.DEATHS)  # a drill changes it
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def assert_all_told_once(drill: Drill) -> None:
    found = drill.account()
    assert found["told"] == found["maps"] and NOTHING_WRONG.items() <= found.items(), found


def test_two_workers_share_the_maps(tmp_path: Path) -> None:
    drill = Drill(tmp_path / "journal", tmp_path)
    assert drill.main() == "no map that was not tried promises more"
    assert_all_told_once(drill)
    assert drill.account()["begun again"] == 0
    workers = {t.user_attrs[WORKER] for t in drill.trials_told()}
    assert len(workers) == 2


def test_trials_are_counted_over_all_workers(tmp_path: Path) -> None:
    drill = Drill(tmp_path / "journal", tmp_path, trials=11, workers=3, strategy="random")
    assert drill.main() == "all 11 trials done"
    told = drill.trials_told()
    assert len(told) == 11
    assert drill.log.read_text().count("begin") == sum(lead.REPEATS not in t.user_attrs for t in told)


def test_workers_join_a_search_that_judges_by_itself_and_leave(tmp_path: Path) -> None:
    drill = Drill(tmp_path / "journal", tmp_path, workers=0, seconds=0.05)
    leader = Fork(drill.main)
    try:
        while not drill.log.exists():
            time.sleep(0.01)
        told, ended = drill.help("outside")
        assert leader.wait() == 0
    finally:
        leader.kill()
    assert ended == "no map that was not tried promises more"
    assert_all_told_once(drill)
    assert told == sum(t.user_attrs[WORKER] == "outside" for t in drill.trials_told()) > 3
    assert drill.account()["begun again"] == 0


def test_a_worker_that_is_killed_is_replaced_and_its_map_taken_up(tmp_path: Path) -> None:
    drill = Drill(tmp_path / "journal", tmp_path, seconds=0.1, trials=8)
    leader = Fork(drill.main)
    try:
        while not drill.log.exists():
            time.sleep(0.01)
        who = drill.log.read_text().split()[1]
        (pid,) = [pid for pid, name in drill.pids().items() if name == who]
        os.kill(pid, signal.SIGKILL)
        assert leader.wait() == 0
    finally:
        leader.kill()
    assert "was killed by signal 9; its map is given to another worker" in drill.said()
    assert len(drill.trials_told()) == 8 and drill.account()["doubled"] == 0
    assert drill.account()["begun again"] <= 1


def test_kills_at_random_moments_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    drill = Drill(tmp_path / "journal", tmp_path, seconds=0.1)
    assert run_with_kills(drill, 5, seed=1) == {"worker": 4, "main": 1}
    assert_all_told_once(drill)


def test_kills_of_the_database_too_lose_nothing_and_double_nothing(postgres: Server, tmp_path: Path) -> None:
    def restart() -> None:
        postgres.kill()
        postgres.start()

    drill = Drill(postgres.new(), tmp_path, seconds=0.1)
    assert run_with_kills(drill, 5, seed=1, restart=restart) == {"worker": 3, "database": 1, "main": 1}
    assert_all_told_once(drill)


def test_a_map_that_kills_its_worker_twice_is_given_up(tmp_path: Path) -> None:
    class Deadly(Drill):
        def judge(self, who: str):
            inner = super().judge(who)

            def evaluate(base: str, layers: dict[str, str]) -> Outcome:
                if base == "float32" and set(layers.values()) == {"float32"}:
                    os.kill(os.getpid(), signal.SIGKILL)
                return inner(base, layers)

            return evaluate

    drill = Deadly(tmp_path / "journal", tmp_path)
    assert drill.main() == "no map that was not tried promises more"
    (failed,) = [t for t in join_study(drill.place, NAME).trials if "reason" in t.user_attrs]
    assert "killed twice" in failed.user_attrs["reason"] and failed.user_attrs[lead.KILLED] == 2
    assert len(drill.trials_told()) == len(drill.maps()) - 1


def test_without_any_worker_there_is_an_error(tmp_path: Path) -> None:
    class Broken(Drill):
        def help(self, name: str) -> tuple[int, str]:
            raise AutoquantError("no model here")

    with pytest.raises(AutoquantError, match="No worker is left"):
        Broken(tmp_path / "journal", tmp_path).main()


def study_of(tmp_path: Path):
    problem = synthetic.make(2)
    return problem, open_study(tmp_path / "journal", problem, "random", 0)


def test_what_a_worker_finds_after_its_map_was_given_away_is_dropped(tmp_path: Path) -> None:
    problem, study = study_of(tmp_path)
    judged = synthetic.Judge(problem, 1.0)
    study.ask(space_of(problem))
    trial = study.get_trials()[0]
    write(study, trial._trial_id, **{WORKER: "slow"}, bytes=1.0, predicted_divergence=0.1, origin="proposed", label="x")

    def meanwhile(base: str, layers: dict[str, str]) -> Outcome:
        write(study, trial._trial_id, **{WORKER: "other"})
        return judged(base, layers)

    now = study.get_trials()[0]
    assert not judge_trial(problem, study, now, "slow", meanwhile, None)
    assert study.get_trials()[0].state.name == "RUNNING" and "drop" not in study.get_trials()[0].user_attrs
    assert judge_trial(problem, study, now, "other", judged, None)
    assert not judge_trial(problem, study, now, "other", judged, None), "finished is finished"
    assert len(judged.asked) == 2


def test_a_worker_that_is_interrupted_gives_its_map_back(tmp_path: Path) -> None:
    problem, study = study_of(tmp_path)
    study.ask(space_of(problem))
    write(study, study.get_trials()[0]._trial_id, **{WORKER: "me"}, bytes=1.0, predicted_divergence=0.1)

    def interrupt(base: str, layers: dict[str, str]) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_once(problem, study, "me", interrupt, None)
    (trial,) = study.get_trials()
    assert trial.state.name == "RUNNING" and trial.user_attrs[WORKER] == trial.user_attrs[BEGUN] == ""


def test_a_worker_without_a_main_process_says_so_and_leaves(tmp_path: Path) -> None:
    problem, study = study_of(tmp_path)
    said: list[str] = []
    with pytest.raises(AutoquantError, match="--resume"):
        work(problem, study, "me", synthetic.Judge(problem, 1.0), say=said.append, lonely=0.3)
    assert said == ["the search's main process is silent; waiting for it for 0 minutes"]


def test_one_process_at_a_time_leads(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(UsageError, match="autoquant worker"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_who_was_asleep_takes_nobody_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, study = study_of(tmp_path)
    now = [0.0]
    monkeypatch.setattr(roll.time, "monotonic", lambda: now[0])
    listener, other = roll.Roll(study, "me"), roll.Roll(study, "other")
    listener._beat()
    listener.look()
    other._beat()
    listener.look()
    assert listener.present() == ["other"]
    now[0] += 1000
    listener.look()
    assert not listener.silent("other")
    for _ in range(30):
        now[0] += roll.BEAT
        listener.look()
    assert listener.silent("other") and listener.present() == []
    other._beat()
    listener.look()
    assert listener.present() == ["other"]


def test_a_storage_that_is_away_is_waited_for_and_what_was_judged_meanwhile_is_told(postgres: Server) -> None:
    said: list[str] = []
    problem = synthetic.make(2)
    study = open_study(postgres.new(), problem, "random", 0, NAME)
    inner, asked = synthetic.Judge(problem, 1.0), []

    def judge(base: str, layers: dict[str, str]) -> Outcome:
        asked.append(base)
        if len(asked) == 2:
            postgres.kill()
            threading.Timer(0.5, postgres.start).start()
        return inner(base, layers)

    candidates, reason = run_search(problem, judge, study, trials=4, say=said.append)
    assert reason == "all 4 trials done" and len(candidates) == len(asked) == 4
    assert sum("does not answer" in text for text in said) >= 1
