"""The verdict in one sentence: every way a run can end, and every kind of metric."""

from __future__ import annotations

from typing import Any

import pytest

from autoquant.report import sentence

from . import sample


def _report(metric: dict[str, Any] | None = None, budget: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    report = {**sample.full(), "schemes": {"int8-channel-sym/a8-token": 30, "int8-channel-sym": 8, "bfloat16": 2}}
    report["metric"] = {**report["metric"], **(metric or {})}
    report["budget"] = {**report["budget"], **(budget or {})}
    return {**report, **keys}


def test_pass_says_what_it_costs_what_it_saves_and_how_sure_that_is() -> None:
    assert sentence(_report()) == (
        "PASS: int8 on 38 of 40 layers runs 2.10× as fast as float32 (1.40× bfloat16) at 0.26× of its bytes; nDCG@10 "
        "drops by 0.0012, and with 95% confidence by less than 0.0041 (budget 0.01, 2,400 queries never seen by the "
        "search)."
    )


def test_one_scheme_family_everywhere_and_two_families() -> None:
    assert "int8 on all 40 layers" in sentence(_report(schemes={"int8-channel-sym": 40}))
    assert "int8 on 30 and int4 on 8 of 40 layers" in sentence(
        _report(schemes={"int8-channel-sym": 30, "int4-group-sym": 8, "bfloat16": 2})
    )


def test_slower_than_half_is_said() -> None:
    text = sentence(_report(latency_ms={"float32": 40.0, "half": 20.0, "quantized": 25.0}))
    assert "1.60× as fast as float32, but slower than bfloat16 (0.80× its speed), at 0.26× of its bytes" in text


def test_slower_than_float_is_said() -> None:
    text = sentence(_report(latency_ms={"float32": 40.0, "half": None, "quantized": 50.0}))
    assert "runs slower than float32 (0.80× its speed) at 0.26× of its bytes" in text
    assert "bfloat16" not in text


def test_a_difference_within_the_noise_is_no_gain() -> None:
    text = sentence(_report(latency_ms={"float32": 40.0, "half": 20.02, "quantized": 20.0}))
    assert "no faster than bfloat16 (1.00×, within the noise), at" in text


def test_fail_names_what_is_shipped_instead() -> None:
    text = sentence(
        _report({"drop": 0.0153, "lower_bound": 0.01129, "upper_bound": 0.0201}, verdict="FAIL", shipped="half")
    )
    assert text == (
        "FAIL: with int8 on 38 of 40 layers, nDCG@10 drops by 0.0153, and with 95% confidence by more than 0.0112 "
        "(budget 0.01, 2,400 queries never seen by the search). Shipped instead: bfloat16, which runs 1.50× as fast as "
        "float32 at 0.50× of its bytes."
    )


def test_fail_with_nothing_left_ships_float() -> None:
    text = sentence(_report({"drop": 0.02, "lower_bound": 0.015}, verdict="FAIL", shipped="float32"))
    assert text.endswith("Shipped instead: the float32 model, unchanged.")


def test_quantizing_that_does_not_pay_is_said() -> None:
    text = sentence(_report({"drop": 0.0001, "upper_bound": 0.0011}, shipped="half", schemes={"bfloat16": 40}))
    assert text.startswith(
        "PASS, but quantizing does not pay on this machine: bfloat16, which runs 1.50× as fast as float32"
    )
    assert "drops by 0.0001" in text
    assert "float32 model is shipped unchanged" in sentence(_report(shipped="float32"))


def test_inconclusive_says_how_many_items_would_settle_it() -> None:
    text = sentence(
        _report({"drop": 0.0052, "upper_bound": 0.0131, "needed": 4100}, verdict="INCONCLUSIVE", shipped="half")
    )
    assert text.startswith("INCONCLUSIVE: with int8 on 38 of 40 layers, nDCG@10 drops by 0.0052, but at 95% confidence")
    assert "could drop by up to 0.0131" in text
    assert "About 4,100 queries would settle it. Shipped instead: bfloat16" in text


def test_inconclusive_above_the_budget_names_the_lower_bound() -> None:
    text = sentence(
        _report(
            {"drop": 0.0121, "lower_bound": 0.0071, "upper_bound": 0.02}, verdict="INCONCLUSIVE", shipped="quantized"
        )
    )
    assert "could drop by as little as 0.0071" in text
    assert "More data would settle it. The quantized checkpoint is written, but it is not certified." in text


def test_without_confidence_the_point_estimate_is_named() -> None:
    text = sentence(_report({"confidence": None, "upper_bound": None, "lower_bound": None}, {"confidence": None}))
    assert "judged on the point estimate only" in text
    assert "confidence" not in text


PERPLEXITY = {
    "name": "perplexity",
    "higher_is_better": False,
    "float": 23.17,
    "quantized": 23.26,
    "drop": 0.004,
    "upper_bound": 0.0089,
    "lower_bound": 0.001,
    "item": "chunk",
}


def test_a_relative_lower_is_better_metric_rises_by_percent() -> None:
    text = sentence(_report(PERPLEXITY, {"relative": True}))
    assert "perplexity rises by 0.4%, and with 95% confidence by less than 0.89% (budget 1%, 2,400 chunks" in text


def test_an_improvement_is_not_called_a_drop() -> None:
    assert "nDCG@10 does not drop (it rises by 0.0003)" in sentence(_report({"drop": -0.0003}))
    assert "perplexity does not rise (it drops by 0.2%)" in sentence(
        _report({**PERPLEXITY, "drop": -0.002}, {"relative": True})
    )
    assert "nDCG@10 does not drop, and" in sentence(_report({"drop": 0.0}))
    assert "with 95% confidence it drops by less than" in sentence(_report({"drop": -0.0003}))
    assert "with 95% confidence by less than" in sentence(_report({"drop": 0.0003}))
    assert "with 95% confidence it does not drop" in sentence(_report({"drop": -0.004, "upper_bound": -0.001}))


def test_bounds_are_rounded_away_from_comfort() -> None:
    assert "by less than 0.0042" in sentence(_report({"upper_bound": 0.00411}))
    assert "by less than 0.00997" in sentence(_report({"upper_bound": 0.009961}))  # not 0.0100: that is the budget


def test_a_profile_has_a_sentence_too() -> None:
    text = sentence(sample.profile_only())
    assert text.startswith("Profile of 40 layers under 19 schemes, from 160 calibration inputs. Most sensitive: ")
    assert "classifier" in text


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "INCONCLUSIVE"])
@pytest.mark.parametrize("shipped", ["quantized", "half", "float32"])
@pytest.mark.parametrize("confidence", [0.95, None])
@pytest.mark.parametrize("bound", [0.004, 0.02, None])
def test_every_combination_reads_as_one_clean_text(
    verdict: str, shipped: str, confidence: float | None, bound: float | None
) -> None:
    report = _report(
        {"confidence": confidence, "upper_bound": bound, "lower_bound": bound},
        verdict=verdict,
        shipped=shipped,
        latency_ms={"float32": 40.0, "half": 20.0, "quantized": None},
    )
    text = sentence(report)
    assert text.startswith(verdict) and text.endswith(".")
    for ugly in ("None", "nan", "  ", "..", ",.", " ,", ",,", "–"):
        assert ugly not in text
