"""Numbers as people read them. Every figure in the page and in the terminal goes through here.

One convention: milliseconds, ratios and megabytes have three significant digits; 1 MB is 10⁶ bytes; a true minus sign;
thousands are separated by commas; an en dash stands for "not measured".
"""

from __future__ import annotations

import math

MISSING = "–"
MINUS = "\u2212"


def significant(value: float | None, digits: int = 3) -> str:
    """Three significant digits without an exponent: 0.0123, 1.20, 12.3, 123, 1,230."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    # 9.996 rounds up to 10.00: the digit that was gained is dropped again.
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return _signed(f"{rounded:,.{decimals}f}")


def ms(value: float | None) -> str:
    return MISSING if value is None else f"{significant(value)} ms"


def size(count: float | None) -> str:
    """Bytes with the unit that leaves at least one digit before the point."""
    if count is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= factor:
            return f"{significant(count / factor)} {unit}"
    return f"{count:,.0f} B"


def megabytes(count: float | None) -> str:
    """The number alone, for a column whose heading says MB."""
    return MISSING if count is None else significant(count / 1e6)


def saved(value: float | None) -> str:
    """A difference in a column: one too small to matter is not spelt out to six decimals."""
    return "≈ 0" if value is not None and 0 < abs(value) < 0.001 else significant(value)


def count(value: float | None) -> str:
    return MISSING if value is None else _signed(f"{value:,.0f}")


def params(value: float | None) -> str:
    if value is None:
        return MISSING
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{significant(value / factor)} {unit}"
    return f"{value:,.0f}"


def score(value: float | None) -> str:
    """A divergence spans ten decades, so it is written with an exponent: 3.1e-6."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return _signed(mantissa) + f"e{int(exponent)}".replace("-", MINUS)


def decibel(value: float | None) -> str:
    return MISSING if value is None or not math.isfinite(value) else _signed(f"{value:.1f}")


def times(value: float | None) -> str:
    """A ratio: 2.10×, 0.26×."""
    return MISSING if value is None else f"{significant(value) if value >= 10 else f'{value:.2f}'}×"


def seconds(value: float | None) -> str:
    if value is None:
        return MISSING
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def metric(value: float | None) -> str:
    """Scores below ten keep four decimals (0.7412); larger ones, like a perplexity, two (23.17)."""
    if value is None or not math.isfinite(value):
        return MISSING
    return _signed(f"{value:,.4f}" if abs(value) < 10 else f"{value:,.2f}")


def percent(value: float) -> str:
    """A confidence or share: 0.95 → 95%, 0.995 → 99.5%."""
    return f"{value * 100:.6g}%"


def drop(value: float | None, budget: float, relative: bool, towards: str = "nearest") -> str:
    """A drop in the unit of its budget, with enough digits to tell it from the budget.

    Args:
        towards: `up` rounds an upper bound up, so that "less than 0.0041" stays true; `down` is for a lower bound.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    scale, least = (100, 2) if relative else (1, 4)
    decimals = least if budget <= 0 else max(least, 1 + math.ceil(-math.log10(budget * scale)))
    while True:
        shown = _rounded(value * scale, decimals, towards)
        if decimals >= 8 or value == budget or shown != round(budget * scale, decimals):
            break
        decimals += 1
    text = f"{shown + 0.0:,.{decimals}f}"
    if relative and "." in text:
        text = text.rstrip("0").rstrip(".")
    return _signed(text) + ("%" if relative else "")


def budget(value: float, relative: bool) -> str:
    return percent(value) if relative else f"{value:.6g}"


def plural(number: int, noun: str) -> str:
    """2,400 queries, 1 query."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        noun = noun[:-1] + "ies"
    elif noun.endswith(("s", "x", "ch", "sh")):
        noun += "es"
    else:
        noun += "s"
    return f"{number:,} {noun}"


def _rounded(value: float, decimals: int, towards: str) -> float:
    if towards == "nearest":
        return round(value, decimals)
    step = 10.0**decimals
    # The slack keeps a value that *is* 0.0041 from being pushed to 0.0042 by its binary tail.
    shifted = value * step
    whole = math.ceil(shifted - 1e-6) if towards == "up" else math.floor(shifted + 1e-6)
    return whole / step


def _signed(text: str) -> str:
    return text.replace("-", MINUS, 1) if text.startswith("-") else text
