"""Cut running text into windows of tokens, dealt into disjoint stretches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.errors import DataError
from autoquant.tasks.base import SPLITS
from autoquant.tasks.data import read_columns, texts
from autoquant.tasks.docstrings import pairs
from autoquant.tasks.inputs import (
    TokenRows,
    hash_texts,
    longest_row,
    padding_of,
    require,
)
from autoquant.tasks.splitting import assign, pools

WINDOW = 256
"""Tokens a window: short, so that there are many items."""

CAPS = {"calibration": 2**13, "search": 2**13, "certification": 2**15}
"""Default sizes in tokens, at most: every token is an output, and the mean loss of a few thousand settles a budget of 1%."""

STRETCH = 8
"""Windows that stay together, fewer when there is little text."""

ROLES = {"text": ("text", "content", "document", "article", "story", "sentence")}


def window_rows(
    data: str | None,
    test_data: str | None,
    tokenizer: Any,
    columns: Mapping[str, str | int],
    seed: int,
    sizes: Mapping[str, int],
    window: int,
) -> TokenRows:
    """Windows of exactly `window` tokens for every split; what is left at the end of a source is dropped.

    A `.txt` file is one running text. Documents of other files are shuffled by `seed` and joined with the end token.
    Where the tokenizer starts a text with a special token, every window starts with it.

    Raises:
        DataError: there is too little text, no tokenizer, or a column is missing.
    """
    require(tokenizer, "tokenizer")
    main, main_hash = _windows(data, tokenizer, columns, seed, window)
    test, test_hash = _windows(test_data, tokenizer, columns, seed, window) if test_data else (None, "")
    sources = pools(_stretches(main, "main"), _stretches(test, "test") if test else None)
    caps = {split: max(1, tokens // window) for split, tokens in CAPS.items()}
    chosen = assign(sources, seed, sizes, "windows", caps)
    every = main + (test or [])
    encodings = {
        split: [{"input_ids": every[i], "attention_mask": [1] * window} for i in chosen[split]] for split in SPLITS
    }
    digest = hash_texts([main_hash, test_hash, *(f"{split}{chosen[split]}" for split in SPLITS)])
    return TokenRows(encodings, digest, padding_of(tokenizer))


def window_length(tokenizer: Any, asked: int | None) -> int:
    return longest_row(tokenizer, asked, WINDOW)


def documents(source: str | None, columns: Mapping[str, str | int]) -> list[str]:
    """Texts of a source: a `.txt` file is one, a table has one a row, the embedded docstrings have one a module."""
    if source is None:
        modules: dict[str, list[str]] = {}
        for pair in pairs():
            modules.setdefault(pair.module, []).append(f"{pair.query}\n{pair.document}")
        return ["\n\n".join(parts) for parts in modules.values()]
    path = Path(source)
    if path.suffix.casefold() == ".txt" and path.is_file():
        try:
            return [path.read_text(encoding="utf-8-sig")]
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Convert it first.") from error
    found = texts(read_columns(source, ROLES, columns=columns)["text"], "text", source)
    return list(dict.fromkeys(found))


def _windows(
    source: str | None, tokenizer: Any, columns: Mapping[str, str | int], seed: int, window: int
) -> tuple[list[list[int]], str]:
    found = documents(source, columns)
    start, end = _start(tokenizer), getattr(tokenizer, "eos_token_id", None)
    stream: list[int] = []
    for place in np.random.default_rng([seed, 7]).permutation(len(found)):
        # One text may be far longer than the model's limit; the windows cut it, so the warning is beside the point.
        stream += tokenizer(found[place], add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        if end is not None and len(found) > 1:
            stream.append(end)
    step = window - len(start)
    cut = [start + stream[at : at + step] for at in range(0, len(stream) - step + 1, step)]
    if not cut:
        raise DataError(
            f"{source or 'The data'} has {len(stream)} tokens, less than one window of {window}. Give more text or a "
            "smaller --max-length."
        )
    return cut, hash_texts(found)


def _start(tokenizer: Any) -> list[int]:
    """The special token in front of a text, if the tokenizer puts one there."""
    first = tokenizer("a")["input_ids"][:1]
    return first if first and first[0] == getattr(tokenizer, "bos_token_id", None) else []


def _stretches(windows: Sequence[Sequence[int]], source: str) -> list[tuple[str, int]]:
    length = max(1, min(STRETCH, len(windows) // 40))
    return [(source, place // length) for place in range(len(windows))]
