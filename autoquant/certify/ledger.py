"""How often certification data were used: a result that was seen may have shaped what is certified next.

The first use of data is judged at the error rate that the user asked for, alpha. Every later use (k = 2, 3, …) is judged at
alpha / (k (k - 1)), which adds up to alpha over all later uses, however many: one false PASS in the first use and one in all
the others together each have a chance of at most alpha.

Uses count as of the same data when they are of the same float model and share rows (of which the ledger keeps a sketch of
hashes, no content), so another seed or a part of the data is no way around it. The same frozen maps again, or one of them,
are no new use: they give the same figures. A ledger lies in the run folder and, for all runs of a user, in the state folder;
a place that cannot be written is left out, and that is said.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autoquant.artifacts import fingerprint

VARIABLE = "AUTOQUANT_STATE"
"""Environment variable that says where the state folder is; empty or `none`: there is none."""

FILE = "certifications.jsonl"
SKETCH = 256
"""Smallest hashes of rows that are kept."""

SHARED = 0.02
"""Share of rows in common (Jaccard) from which on data are the same."""


@dataclass(frozen=True)
class Use:
    """One use of certification data.

    Attributes:
        of: what the uses of one claim share: the float model.
        what: fingerprints of the frozen maps, or of the checkpoint, that are judged.
        sketch: the smallest hashes of the rows.
        date, label: for people.
    """

    of: str
    what: tuple[str, ...]
    sketch: tuple[str, ...]
    date: str = ""
    label: str = ""


@dataclass(frozen=True)
class Charge:
    """What a use costs.

    Attributes:
        number: of this use of these data, from 1.
        confidence: at which it is judged; None where the point estimate decides.
        asked: the confidence that the user asked for.
        earlier: date and label of the earlier uses.
        notes: ledgers that could not be written.
    """

    number: int
    confidence: float | None
    asked: float | None
    earlier: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def words(self) -> str | None:
        """What a user should know of it; None for a first use."""
        if self.number == 1:
            return None
        text = f"Use {self.number} of these certification data (before: {'; '.join(self.earlier[-3:])})"
        if self.asked is None or self.confidence is None:
            return f"{text}: a point estimate on data that were seen before proves nothing."
        return f"{text}: judged at {_percent(self.confidence)} confidence instead of {_percent(self.asked)}."


def charge(use: Use, confidence: float | None, folders: Iterable[Path | None]) -> Charge:
    """Record a use, before its outcome is seen, in the ledgers of these folders; the number and confidence it is judged at.

    Args:
        folders: a run folder, the state folder (`state_folder()`); None is passed over.
    """
    places = [folder / FILE for folder in folders if folder is not None]
    known: dict[tuple[str, ...], Use] = {}
    for place in places:
        for earlier in _read(place):
            if earlier.of == use.of and shared_rows(earlier.sketch, use.sketch) >= SHARED:
                known.setdefault(earlier.what, earlier)
    ordered = sorted(known.values(), key=lambda one: one.date)
    again = next((place for place, one in enumerate(ordered) if set(use.what) <= set(one.what)), None)
    before = ordered if again is None else ordered[:again]
    same = use if again is None else ordered[again]
    notes = tuple(note for place in places if (note := _append(place, same)) is not None)
    number = len(before) + 1
    spent = None if confidence is None else 1 - (1 - confidence) / (1 if number == 1 else number * (number - 1))
    return Charge(number, spent, confidence, tuple(f"{one.date} {one.label}".strip() for one in before), notes)


def sketch(digests: Sequence[str]) -> tuple[str, ...]:
    """The smallest distinct hashes of rows, whose overlap with another sketch estimates that of the rows (Broder 1997)."""
    return tuple(sorted({fingerprint(one)[:10] for one in digests})[:SKETCH])


def shared_rows(one: Sequence[str], two: Sequence[str]) -> float:
    """Estimated number of rows in both, over that of rows in either."""
    both = sorted(set(one) | set(two))[: max(len(one), len(two))]
    return len(set(one) & set(two) & set(both)) / max(1, len(both))


def state_folder() -> Path | None:
    """Where what outlives a run is kept: `AUTOQUANT_STATE`, or autoquant's folder in the XDG state directory."""
    asked = os.environ.get(VARIABLE)
    if asked is not None:
        return None if asked.strip().lower() in ("", "none") else Path(asked).expanduser()
    try:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError:  # a user without a home
        return None
    return home / "autoquant"


def _read(place: Path) -> list[Use]:
    """Uses in a ledger; lines that a killed process left half written, or that another version wrote, are passed over."""
    try:
        lines = place.read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [use for line in lines if (use := _parsed(line)) is not None]


def _parsed(line: str) -> Use | None:
    try:
        value: Any = json.loads(line)
        if not isinstance(value, Mapping):
            return None
        of, what, rows = str(value["of"]), _texts(value["what"]), _texts(value["sketch"])
        return Use(of, what, rows, str(value.get("date", "")), str(value.get("label", "")))
    except (ValueError, KeyError, TypeError):
        return None


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError
    return tuple(str(one) for one in values)


def _append(place: Path, use: Use) -> str | None:
    """Add a use that the ledger does not have; a reason where it cannot be written. One write of one line: processes that
    share the ledger do not cut each other's lines."""
    if any((one.of, one.what) == (use.of, use.what) for one in _read(place)):
        return None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(use)) + "\n"
        with open(place, "ab+") as file:
            if file.tell() and not _ends_with_newline(file):
                text = "\n" + text
            file.write(text.encode())
    except OSError as error:
        return f"The use of the certification data could not be noted in {place}: {error.strerror or error}."
    return None


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _percent(confidence: float) -> str:
    return f"{100 * confidence:.4g}%"
