"""A report that misses something is refused with the path of what is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from autoquant.errors import CheckpointError
from autoquant.report import validate

from . import sample


def test_the_samples_are_valid_also_after_a_round_trip_through_json() -> None:
    for report in (sample.full(), sample.profile_only()):
        validate(report)
        validate(json.loads(json.dumps(report)))


@pytest.mark.parametrize("key", ["title", "layers", "budget", "metric", "shipped", "latency_ms", "bytes", "schemes"])
def test_a_missing_key_is_named(key: str) -> None:
    report = sample.full()
    del report[key]
    with pytest.raises(CheckpointError, match=f"'{key}' is missing"):
        validate(report)


def test_a_missing_nested_key_is_named_with_its_path() -> None:
    report = sample.full()
    del report["layers"][3]["scores"]
    with pytest.raises(CheckpointError, match=r"'layers\[3\].scores' is missing"):
        validate(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "MAYBE"}, "'verdict' is 'MAYBE'; valid: PASS, FAIL, INCONCLUSIVE"),
        ({"layers": {}}, "'layers' should be a list, but is a dict"),
        ({"metric": None}, "'metric' should be a mapping, but is null"),
        ({"schemes": {"int8": "many"}}, "'schemes.int8' should be a number, but is a str"),
        ({"title": 3}, "'title' should be a str, but is a int"),
    ],
)
def test_a_wrong_type_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        validate({**sample.full(), **change})
    assert message in str(caught.value)


def test_numbers_that_were_not_measured_may_be_null() -> None:
    report = sample.full()
    report["latency_ms"]["half"] = report["metric"]["half"] = report["layers"][0]["scores"]["int8-channel-sym"] = None
    validate(report)
