"""Read tables of examples: csv, tsv, txt, json, jsonl, parquet, a saved `datasets` folder, or a hub data set.

A task names the **roles** it needs (`text`, `label`, …) with the usual column names of each; `read_columns` finds
them, or takes what the user named: `--columns text=NAME,label=NAME`, by position (`text=0`) in a file without header.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.errors import DataError, nearest, reject_unknown

Roles = Mapping[str, Sequence[str]]
"""Role → the usual names of its column, best first."""


@dataclass(frozen=True)
class Table:
    """Columns of equal length. `header` is None when the file has none and columns go by position."""

    columns: tuple[list[Any], ...]
    header: tuple[str, ...] | None
    source: str


def read_columns(
    source: str | Path, roles: Roles, *, optional: Iterable[str] = (), columns: Mapping[str, str | int] | None = None
) -> dict[str, list[Any]]:
    """Role → values, all of one length, for every role of `roles` (a missing `optional` one is left out).

    Args:
        source: a path, or a hub id `owner/name`, `owner/name:split` or `owner/name:config:split`.
        columns: role → column name, or position from 0 in a file without header.

    Raises:
        DataError: nothing is there, it is empty or malformed, or a column is missing.
    """
    named = dict(columns or {})
    reject_unknown(named, roles, "--columns", DataError)
    table = read_table(source, roles, named)
    if not table.columns or not table.columns[0]:
        raise DataError(f"{source} is empty: it has no rows.")
    found: dict[str, list[Any]] = {}
    for position, role in enumerate(roles):
        index = _column(table, role, roles[role], named, position, role in set(optional))
        if index is not None:
            found[role] = table.columns[index]
    return found


def texts(values: Sequence[Any], role: str, source: str | Path) -> list[str]:
    """`values` if all are texts with something in them.

    Raises:
        DataError: a blank, a missing or a non-text value, with its row.
    """
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"{source}: row {row} has {_shown(value)} where a text is needed (role '{role}'). Remove the row, or "
                f"name another column: --columns {role}=NAME"
            )
    return list(values)


def numbers(values: Sequence[Any], role: str, source: str | Path) -> list[float]:
    """`values` as finite floats.

    Raises:
        DataError: a value that is none, with its row.
    """
    result = []
    for row, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not abs(number) < float("inf"):
            raise DataError(
                f"{source}: row {row} has {_shown(value)} where a number is needed (role '{role}'). Remove the row, "
                f"or name another column: --columns {role}=NAME"
            )
        result.append(number)
    return result


def _shown(value: Any) -> str:
    return "an empty text" if isinstance(value, str) and not value.strip() else repr(value)[:60]


def absolute(source: str | Path | None) -> str | None:
    """A path made absolute, for a fresh process elsewhere; a hub id (or None) as it is."""
    if source is None:
        return None
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else str(source)


def _column(
    table: Table, role: str, usual: Sequence[str], named: Mapping[str, str | int], position: int, optional: bool
) -> int | None:
    count = len(table.columns)
    if role in named:
        name = named[role]
        if table.header is not None and str(name) in table.header:
            return table.header.index(str(name))
        if _is_position(name) and int(name) < count:
            return int(name)
        raise DataError(f"{table.source} has no column '{name}' for --columns {role}={name}. {_listing(table, name)}")
    if table.header is None:
        # Without header, roles are taken in order, but only if nothing was named: a mixture would be a guess.
        if not named and usual and position < count:
            return position
    else:
        lowered = [name.casefold() for name in table.header]
        for name in usual:
            if name in lowered:
                return lowered.index(name)
    if optional:
        return None
    raise DataError(
        f"{table.source} has no column for '{role}' (looked for {', '.join(usual)}). {_listing(table)} "
        f"Name it: --columns {role}=NAME"
    )


def _listing(table: Table, wanted: str | int | None = None) -> str:
    if table.header is None:
        return f"The file has no header and {len(table.columns)} columns: name them 0 to {len(table.columns) - 1}."
    return f"Found columns:{nearest(str(wanted or ''), table.header)}"


def _is_position(name: str | int) -> bool:
    return isinstance(name, int) or name.isdecimal()


def read_table(source: str | Path, roles: Roles, named: Mapping[str, str | int]) -> Table:
    """All columns of `source`. Roles and `--columns` help to tell a header from a first row."""
    path = Path(source).expanduser()
    if not path.exists():
        return _hub(str(source))
    if path.is_dir():
        return _saved(path)
    reader = READERS.get(path.suffix.casefold())
    if reader is None:
        raise DataError(f"{path} ends in '{path.suffix}'.{nearest(path.suffix, READERS)}")
    try:
        return reader(path, roles, named)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Convert it first.") from error
    except (csv.Error, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}.") from error


def _delimited(path: Path, roles: Roles, named: Mapping[str, str | int], **style: Any) -> Table:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, **style)
        rows: list[list[str]] = []
        for row in reader:
            if row and rows and len(row) != len(rows[0]):
                raise DataError(
                    f"{path}: line {reader.line_num} has {len(row)} cells, the first row has {len(rows[0])}. Quote "
                    "cells that hold the separator, or save the table as jsonl."
                )
            if row:
                rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty.")
    header = tuple(cell.strip() for cell in rows[0]) if _has_header(rows[0], roles, named) else None
    body = rows if header is None else rows[1:]
    return Table(tuple([row[i] for row in body] for i in range(len(rows[0]))), header, str(path))


def _has_header(first: Sequence[str], roles: Roles, named: Mapping[str, str | int]) -> bool:
    usual = {name for names in roles.values() for name in names}
    cells = {cell.strip() for cell in first}
    if any(str(name) in cells for name in named.values() if not _is_position(name)) or any(
        cell.casefold() in usual for cell in cells
    ):
        return True
    if named and all(_is_position(name) for name in named.values()):
        return False
    return not any(re.fullmatch(r"\s*[-+]?\d+([.,]\d+)?\s*", cell) for cell in first)


def _csv(path: Path, roles: Roles, named: Mapping[str, str | int]) -> Table:
    return _delimited(path, roles, named)


def _tsv(path: Path, roles: Roles, named: Mapping[str, str | int]) -> Table:
    # Most tsv files of this field are written without quoting: a lone quote is part of the text.
    return _delimited(path, roles, named, delimiter="\t", quoting=csv.QUOTE_NONE)


def _txt(path: Path, roles: Roles, named: Mapping[str, str | int]) -> Table:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return Table(([line for line in lines if line.strip()],), ("text",), str(path))


def _json(path: Path, roles: Roles, named: Mapping[str, str | int]) -> Table:
    value = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(value, dict):
        value = next((item for item in value.values() if isinstance(item, list)), None)
    if not isinstance(value, list):
        raise DataError(f"{path} should hold a list of objects such as [{{'text': …, 'label': …}}, …].")
    return _records(value, str(path))


def _jsonl(path: Path, roles: Roles, named: Mapping[str, str | int]) -> Table:
    return _records(read_jsonl(path), str(path))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One object a line; blank lines are skipped. Raises DataError with the line that is none."""
    result = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}: line {number} is not JSON: {error}.") from error
            if not isinstance(value, dict):
                raise DataError(f"{path}: line {number} should hold an object, not a {type(value).__name__}.")
            result.append(value)
    return result


def _records(rows: Sequence[Any], source: str) -> Table:
    if not rows:
        raise DataError(f"{source} is empty.")
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{source} should hold objects such as {{'text': …, 'label': …}}.")
    header = tuple(dict.fromkeys(str(key) for row in rows for key in row))
    return Table(tuple([row.get(name) for row in rows] for name in header), header, source)


def _parquet(path: Path, roles: Roles, named: Mapping[str, str | int]) -> Table:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path} needs the package pyarrow. Type: pip install pyarrow") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise DataError(f"{path} cannot be read as parquet: {error}.") from error
    return Table(tuple(column.to_pylist() for column in table.columns), tuple(table.column_names), str(path))


READERS: dict[str, Callable[[Path, Roles, Mapping[str, str | int]], Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".txt": _txt,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
"""File ending → reader."""

HUB_SPLITS = ("test", "validation", "train")
"""Which split of a data set with several is read when none is named: the first of these that exists."""


def _datasets() -> Any:
    try:
        import datasets  # heavy, and needed only for the two sources below
    except ImportError as error:
        raise DataError("Data sets of the hub need the package datasets. Type: pip install datasets") from error
    return datasets


def _saved(path: Path) -> Table:
    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise DataError(f"{path} is a folder without a saved data set. Give a file:{nearest('', READERS)}")
    return _from_dataset(_datasets().load_from_disk(str(path)), str(path))


def _hub(source: str) -> Table:
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+){0,2}", source) or Path(source).suffix in READERS:
        raise DataError(
            f"There is no file {source}. Give a file ({', '.join(READERS)}) or a hub id such as owner/name."
        )
    name, *rest = source.split(":")
    config, split = rest if len(rest) == 2 else (None, rest[0] if rest else None)
    datasets = _datasets()
    try:
        datasets.disable_progress_bars()
        value = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises its own, the hub client's and OS errors
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise DataError(
            f"'{source}' is neither a file here nor a hub data set that can be read ({type(error).__name__}: {first}). "
            "Give a file, or owner/name, owner/name:split or owner/name:config:split."
        ) from error
    return _from_dataset(value, source)


def _from_dataset(value: Any, source: str) -> Table:
    if isinstance(value, dict):
        value = next((value[name] for name in HUB_SPLITS if name in value), next(iter(value.values())))
    header = tuple(value.column_names)
    return Table(tuple(_values(value, name) for name in header), header, source)


def _values(value: Any, name: str) -> list[Any]:
    feature = value.features[name]
    # An image column stays encoded: decoding thousands of images at once would fill the memory.
    plain = value.cast_column(name, type(feature)(decode=False)) if type(feature).__name__ == "Image" else value
    return list(plain[name])
