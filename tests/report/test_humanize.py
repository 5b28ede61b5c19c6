"""Numbers as people read them."""

from __future__ import annotations

import pytest

from autoquant.report import humanize


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"),
        (1.2, "1.20"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.0, "1,230"),
        (0, "0"),
        (-0.5, "−0.500"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert humanize.significant(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (1500, "1.50 kB"), (90_870_000, "90.9 MB"), (2_500_000_000, "2.50 GB")]
)
def test_sizes(count: int, text: str) -> None:
    assert humanize.size(count) == text


@pytest.mark.parametrize(("value", "text"), [(3.14e-6, "3.1e−6"), (0.0, "0"), (12.0, "1.2e1"), (None, "–")])
def test_scores(value: float | None, text: str) -> None:
    assert humanize.score(value) == text


@pytest.mark.parametrize(("value", "text"), [(8.44, "8.4 s"), (303.5, "5 min 4 s"), (7260.0, "2 h 1 min")])
def test_seconds(value: float, text: str) -> None:
    assert humanize.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "towards", "text"),
    [
        (0.0041, "up", "0.0041"),
        (0.00411, "up", "0.0042"),
        (0.00419, "down", "0.0041"),
        (0.01, "nearest", "0.0100"),
        (0.01002, "nearest", "0.01002"),
        (0.0, "nearest", "0.0000"),
        (-0.0012, "nearest", "−0.0012"),
    ],
)
def test_a_drop_is_rounded_as_its_sentence_needs(value: float, towards: str, text: str) -> None:
    assert humanize.drop(value, 0.01, False, towards) == text


def test_a_small_budget_gets_more_digits() -> None:
    assert humanize.drop(0.000123, 0.0002, False) == "0.00012"


def test_a_zero_budget_terminates() -> None:
    assert humanize.drop(1e-12, 0.0, False) == "0.00000000"


@pytest.mark.parametrize(("number", "text"), [(1, "1 query"), (2400, "2,400 queries")])
def test_plural(number: int, text: str) -> None:
    assert humanize.plural(number, "query") == text


@pytest.mark.parametrize(("noun", "text"), [("batch", "2 batches"), ("essay", "2 essays"), ("row", "2 rows")])
def test_plural_of_other_nouns(noun: str, text: str) -> None:
    assert humanize.plural(2, noun) == text
