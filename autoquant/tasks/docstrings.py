"""The embedded data set: what functions are said to do, from the docstrings of Python and torch as installed here.

A query is a docstring's summary line, its document the rest. Source files are parsed, never imported or run. The data
depend on the installed versions, so a report names them and carries the fingerprint.
"""

from __future__ import annotations

import ast
import gc
import importlib.util
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from autoquant.artifacts import cache_folder, fingerprint, read_json, write_json
from autoquant.errors import AutoquantError
from autoquant.tasks.base import SPLITS
from autoquant.tasks.splitting import assign

SIZES = {"calibration": 256, "search": 800, "certification": 3000}
"""Pairs in each split, at most."""

QUERY_TOKENS, DOCUMENT_TOKENS = 32, 96
"""Longest query and document in tokens."""

SKIPPED_FOLDERS = ("test", "tests", "testing", "idlelib", "turtledemo", "lib2to3", "site-packages", "dist-packages")
"""Tests and vendored code. Folders and files that start with one underscore are skipped too: private."""

LARGEST_FILE = 300_000
"""Bytes; the few larger ones are tables, slow to parse and almost without docstrings."""

QUERY_WORDS, DOCUMENT_WORDS = (3, 40), 8
"""Fewest and most words of a summary; fewest of the rest."""


@dataclass(frozen=True)
class Pair:
    """A query and the one document that answers it; `module` is the source file below its library's folder."""

    module: str
    query: str
    document: str


def split_pairs(seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, list[Pair]]:
    """Split → pairs; a source file's pairs are all in one split, so that no text is shared.

    Raises:
        DataError: `sizes` asks for more than there is.
    """
    found = pairs()
    wanted = {**SIZES, **(sizes or {})}
    if "certification" not in (sizes or {}):  # another installation may have fewer
        wanted["certification"] = max(
            1, min(SIZES["certification"], len(found) - wanted["calibration"] - wanted["search"])
        )
    chosen = assign([(SPLITS, [pair.module for pair in found])], seed, wanted, "pairs")
    return {split: [found[i] for i in index] for split, index in chosen.items()}


@lru_cache(maxsize=1)
def pairs() -> tuple[Pair, ...]:
    """All pairs of this installation, in the order of the file names; no query and no document twice.

    Parsing takes seconds and every fresh process needs them, so they are kept in the user's cache folder with a hash of the
    names, sizes and times of the files.
    """
    folders = libraries()
    kept = cache_folder() / f"docstrings-{fingerprint(sorted(map(str, folders.values())))}.json"
    key = fingerprint([Path(__file__).read_text(encoding="utf8"), [
        [str(file), file.stat().st_size, file.stat().st_mtime_ns] for folder in folders.values() for file in _files(folder)
    ]])  # fmt: skip
    with suppress(AutoquantError, KeyError, TypeError, OSError):
        if kept.is_file() and (found := read_json(kept))["key"] == key:
            return tuple(Pair(*pair) for pair in found["pairs"])
    made = _parsed()
    with suppress(AutoquantError, OSError):
        write_json(kept, {"key": key, "pairs": [[pair.module, pair.query, pair.document] for pair in made]})
    return made


def _parsed() -> tuple[Pair, ...]:
    queries: set[str] = set()
    documents: set[str] = set()
    found = []
    for module, docstring in _docstrings():
        query, _, rest = docstring.partition("\n\n")
        query, document = " ".join(query.split()), " ".join(rest.split())
        least, most = QUERY_WORDS
        if not (least <= len(query.split()) <= most and len(document.split()) >= DOCUMENT_WORDS):
            continue
        if query.casefold() in queries or document.casefold() in documents:
            continue
        queries.add(query.casefold())
        documents.add(document.casefold())
        found.append(Pair(module, query, document))
    return tuple(found)


def libraries() -> dict[str, Path]:
    """Name → folder of the libraries whose docstrings are read."""
    folders = {"python": Path(sysconfig.get_path("stdlib"))}
    torch = importlib.util.find_spec("torch")
    if torch is not None and torch.submodule_search_locations:
        folders["torch"] = Path(torch.submodule_search_locations[0])
    return folders


def _docstrings() -> Iterator[tuple[str, str]]:
    """(module, docstring) of every module, class and function. Order and content depend on the files alone."""
    # The parser makes millions of small objects without cycles; collecting garbage among them doubles its time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        for library, folder in libraries().items():
            for file in _files(folder):
                name = f"{library}/{file.relative_to(folder).as_posix()}"
                for docstring in _of_file(file):
                    yield name, docstring
    finally:
        if collecting:
            gc.enable()


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("_"))
        public = (name for name in sorted(names) if name.endswith(".py") and not re.match("_[^_]", name))
        yield from (file for name in public if (file := Path(place, name)).stat().st_size <= LARGEST_FILE)


def _of_file(file: Path) -> Iterator[str]:
    try:
        source = file.read_text(encoding="utf8")
        if not any("\n\n" in text for text in source.split('"""')[1::2]):
            return  # no docstring with a second paragraph: not worth parsing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # a template or a file in another encoding: not a source of text
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        body = getattr(node, "body", [])
        stack += [
            child
            for child in reversed(body)
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        first = body[0] if body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            yield inspect.cleandoc(first.value.value)
