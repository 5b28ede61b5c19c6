"""Uses of certification data: counted, charged, and never in the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from autoquant.certify.ledger import FILE, VARIABLE, Use, charge, shared_rows, sketch, state_folder

ROWS = [f"row {number}" for number in range(1000)]


def use(what: str, rows: list[str] = ROWS, of: str = "model", date: str = "") -> Use:
    return Use(of, (what,), sketch(rows), date or what, f"run {what}")


def test_the_first_use_is_free_and_later_ones_add_up_to_alpha(tmp_path: Path) -> None:
    found = [charge(use(str(number)), 0.95, [tmp_path]) for number in range(1, 8)]
    assert [one.number for one in found] == list(range(1, 8))
    assert found[0].confidence == 0.95 and found[0].words() is None
    spent = [1 - one.confidence for one in found[1:] if one.confidence]
    assert spent[:2] == pytest.approx([0.05 / 2, 0.05 / 6])
    assert sum(spent) < 0.05 and sum(0.05 / (k * (k - 1)) for k in range(2, 10**5)) == pytest.approx(0.05, rel=1e-4)
    assert "97.5%" in (found[1].words() or "") and "run 1" in (found[1].words() or "")


def test_the_same_maps_again_or_one_of_them_are_no_new_use(tmp_path: Path) -> None:
    first = Use("model", ("a", "b"), sketch(ROWS), "1")
    charge(first, 0.95, [tmp_path])
    charge(use("2"), 0.95, [tmp_path])
    assert charge(first, 0.95, [tmp_path]).number == 1
    assert charge(dataclasses.replace(first, what=("b",), date="3"), 0.95, [tmp_path]).number == 1
    assert charge(use("2"), 0.95, [tmp_path]).number == 2
    assert charge(dataclasses.replace(first, what=("b", "c"), date="3"), 0.95, [tmp_path]).number == 3
    assert len((tmp_path / FILE).read_text().splitlines()) == 3


def test_other_data_and_other_models_are_other_claims(tmp_path: Path) -> None:
    charge(use("1"), 0.95, [tmp_path])
    assert charge(use("2", [f"new {row}" for row in ROWS]), 0.95, [tmp_path]).number == 1
    assert charge(use("2", of="another"), 0.95, [tmp_path]).number == 1


def test_another_seed_or_a_part_of_the_data_is_no_way_around_it(tmp_path: Path) -> None:
    charge(use("1", ROWS[:700]), 0.95, [tmp_path])
    assert charge(use("2", ROWS[300:]), 0.95, [tmp_path]).number == 2
    assert charge(use("3", ROWS[400:500]), 0.95, [tmp_path]).number == 3, "a part of both"
    assert charge(use("4", ROWS[:100]), 0.95, [tmp_path]).number == 2, "a part of the first only"


@pytest.mark.parametrize(("shared", "of"), [(500, 1000), (100, 1000), (1000, 1000), (0, 1000), (20, 30)])
def test_a_sketch_tells_how_many_rows_are_shared(shared: int, of: int) -> None:
    one, two = ROWS[:of], [*ROWS[:shared], *(f"other {number}" for number in range(of - shared))]
    assert shared_rows(sketch(one), sketch(two)) == pytest.approx(shared / (2 * of - shared), abs=0.1)


def test_any_of_the_ledgers_remembers(tmp_path: Path) -> None:
    run, user = tmp_path / "run", tmp_path / "user"
    charge(use("1"), 0.95, [run, user])
    assert charge(use("2"), 0.95, [tmp_path / "another run", user]).number == 2
    assert charge(use("3"), 0.95, [run, None]).number == 2, "this one was only told of the first"
    assert charge(use("4"), 0.95, [run, user]).number == 4


def test_without_confidence_it_is_counted_and_said(tmp_path: Path) -> None:
    charge(use("1"), None, [tmp_path])
    found = charge(use("2"), None, [tmp_path])
    assert found.confidence is None and "proves nothing" in (found.words() or "")


def test_a_ledger_that_cannot_be_written_is_said_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = charge(use("1"), 0.95, [tmp_path / "file", tmp_path / "run"])
    assert found.number == 1 and len(found.notes) == 1 and "file" in found.notes[0]
    assert charge(use("2"), 0.95, [tmp_path / "run"]).number == 2


@pytest.mark.parametrize("rest", ['{"of": "model", "wh', "\x00\x01", "[]", '{"of": 1, "what": 2, "sketch": 3}', "\n\n"])
def test_half_a_line_and_lines_of_others_are_passed_over(tmp_path: Path, rest: str) -> None:
    charge(use("1"), 0.95, [tmp_path])
    with open(tmp_path / FILE, "a") as file:
        file.write(rest)
    assert charge(use("2"), 0.95, [tmp_path]).number == 2
    assert charge(use("3"), 0.95, [tmp_path]).number == 3, "the line after it is whole"


def test_where_the_users_ledger_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "here"))
    assert state_folder() == tmp_path / "here"
    monkeypatch.setenv(VARIABLE, "none")
    assert state_folder() is None
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "autoquant"
