"""Where a study may be kept: what its URL may be, what of it is written, and what happens when it is away."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import threading
from pathlib import Path

import optuna
import pytest
from search.postgres import Server

from autoquant.errors import AutoquantError, StaleError, StorageError, UsageError
from autoquant.search import (
    check_storage,
    check_url,
    describe_study,
    join_study,
    mask,
    open_study,
    run_search,
    storages,
)
from autoquant.search.storages import VARIABLE, open_storage, patiently, storage_environment, unmask
from tests import synthetic

URL = "postgresql+psycopg://me:s3cr:e/t@host:5432/studies?sslpassword=s3cret&connect_timeout=3"


def test_a_password_is_masked_wherever_it_stands() -> None:
    assert mask(URL) == "postgresql+psycopg://me:***@host:5432/studies?sslpassword=***&connect_timeout=3"
    assert mask(mask(URL)) == mask(URL)
    for plain in ("sqlite:////folder/study.db", "grpc://host:13000", "postgresql://me@host/studies"):
        assert mask(plain) == plain


def test_the_password_comes_from_the_environment_or_is_left_to_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert unmask(URL) == URL
    assert unmask(mask("postgresql://me:secret@host/studies")) == "postgresql://me@host/studies"
    monkeypatch.setenv(VARIABLE, URL)
    assert unmask(mask(URL)) == URL == storage_environment(mask(URL))[VARIABLE]
    assert unmask("postgresql://me:***@other/studies") == "postgresql://me@other/studies"


def test_a_url_that_cannot_be_is_refused_without_its_password() -> None:
    for wrong in ("studies", "postgresql//me:secret@host", ""):
        with pytest.raises(UsageError, match="expected a URL"):
            check_url(wrong)
    with pytest.raises(UsageError) as error:
        open_storage("nonsense://me:secret@host/studies")
    assert "secret" not in str(error.value) and "nonsense" in str(error.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(*_: object, **__: object) -> None:
        raise ImportError("No module named 'psycopg'")

    monkeypatch.setattr(optuna.storages, "RDBStorage", no_driver)
    with pytest.raises(UsageError, match=r"pip install 'autoquant-search\[postgres\]'"):
        open_storage("postgresql+psycopg://me@host/studies")


def test_a_storage_that_does_not_answer_is_an_error_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg", reason="the extra [postgres] is not installed")
    monkeypatch.setattr(storages, "PATIENCE", 2.0)
    said: list[str] = []
    with pytest.raises(StorageError, match="--resume") as error:
        patiently(lambda: open_storage("postgresql+psycopg://me:s3cret@127.0.0.1:1/studies"), said.append)
    assert "refused" in said[0] and "s3cret" not in said[0] + str(error.value)


def test_what_fails_for_another_reason_is_not_tried_again() -> None:
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        patiently(fail)
    assert len(tries) == 1


def test_a_study_of_another_search_space_is_refused(tmp_path: Path) -> None:
    problem = synthetic.make(2)
    open_study(tmp_path / "journal", problem, "random", 0, made_from="one")
    open_study(tmp_path / "journal", problem, "random", 0, made_from="one")
    for call in (
        lambda: open_study(tmp_path / "journal", problem, "random", 0, made_from="two"),
        lambda: join_study(tmp_path / "journal", made_from="two"),
    ):
        with pytest.raises(StaleError, match="another search space"):
            call()
    with pytest.raises(AutoquantError, match="No search has begun"):
        join_study(tmp_path / "journal", "other")


def searched(place: Path | str, trials: int = 6) -> optuna.Study:
    problem = synthetic.make(3)
    study = open_study(place, problem, "surrogate", 0)
    found, reason = run_search(problem, synthetic.Judge(problem, 0.02), study, trials=trials)
    assert len(found) == trials and reason == f"all {trials} trials done"
    return study


def test_a_search_in_sqlite_goes_on_where_it_was(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    check_storage(url)
    before = [t.params for t in searched(url, 4).trials if t.state.is_finished()]
    after = [t.params for t in searched(url, 7).trials if t.state.is_finished()]
    assert after[:4] == before and len({str(p) for p in after}) == 7


def test_a_search_in_postgresql(postgres: Server) -> None:
    url = postgres.new()
    check_storage(url)
    searched(url)


def test_a_search_through_a_grpc_proxy(tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc") is None:
        pytest.skip("the extra [grpc] is not installed: no grpc")
    from optuna.storages._grpc.server import make_server

    behind = optuna.storages.get_storage(f"sqlite:///{tmp_path}/study.db")
    port = free_port()
    proxy = make_server(behind, "localhost", port)
    proxy.start()
    try:
        searched(f"grpc://localhost:{port}")
    finally:
        proxy.stop(None)
    trials = optuna.load_study(study_name="autoquant", storage=behind).trials
    assert sum(t.state.is_finished() for t in trials) == 6


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def test_the_study_opens_in_optuna_dashboard_with_what_a_person_wants_to_see(tmp_path: Path) -> None:
    if importlib.util.find_spec("optuna_dashboard") is None:
        pytest.skip("the extra [dashboard] is not installed: no optuna_dashboard")
    import optuna_dashboard

    study = searched(tmp_path / "journal")
    describe_study(study, "autoquant: a model, a task")
    app = optuna_dashboard.wsgi(open_storage(tmp_path / "journal"))
    (summary,) = get(app, "/api/studies")["study_summaries"]
    assert summary["study_name"] == "autoquant"
    detail = get(app, f"/api/studies/{summary['study_id']}")
    assert detail["objective_names"] == ["saving"] and detail["directions"] == ["maximize"]
    assert detail["note"]["body"] == "autoquant: a model, a task"
    best = next(t for t in detail["trials"] if t["state"] == "Complete")
    attrs = {a["key"]: a["value"] for a in best["user_attrs"]}
    wanted = {"drop", "error", "margin", "ms", "MB", "saving", "divergence", "predicted_divergence", "label", "schemes"}
    assert wanted <= attrs.keys()
    assert attrs["label"] == "float32" and attrs["schemes"] == "3 float32"
    assert best["constraints"] == pytest.approx([float(attrs["margin"])])
    assert [list(t.constraints.values()) for t in study.trials if t.number == best["number"]] == [best["constraints"]]


def get(app, path: str) -> dict:
    """The answer of a web application, without a network."""
    status: list[str] = []
    environment = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "SERVER_NAME": "test", "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.url_scheme": "http",
    }  # fmt: skip
    body = b"".join(app(environment, lambda code, headers, *rest: status.append(code)))
    assert status[0].startswith("200"), (status, body[:500])
    return json.loads(body)


def test_the_journal_is_free_after_a_writer_was_killed_and_half_a_line_is_removed(tmp_path: Path) -> None:
    """Optuna's own lock is a file that a killed process leaves behind: others would wait for it for half a minute."""
    study = searched(tmp_path / "journal")
    pid = os.fork()
    if pid == 0:
        from autoquant.search.storages import JournalLock

        JournalLock(tmp_path / "journal").acquire()
        with open(tmp_path / "journal", "a") as file:
            file.write('{"op_code": 6, "wor')
        os._exit(0)
    os.waitpid(pid, 0)
    done = threading.Event()
    threading.Thread(target=lambda: (study.set_user_attr("after", 1), done.set()), daemon=True).start()
    assert done.wait(5)
    assert join_study(tmp_path / "journal").user_attrs["after"] == 1
