"""Rows of model inputs: texts, tokenised once, or images, preprocessed on first use."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoquant.errors import DataError
from autoquant.tasks.base import Batch

LONGEST = 512
"""Longest row in tokens unless the user or the model says otherwise; also the cap on the typical length."""

CACHE_BYTES = 512 * 2**20
"""Preprocessed images are kept up to this many bytes; beyond, they are made again each time."""


class Inputs(ABC):
    """The rows of all splits."""

    @abstractmethod
    def rows(self, split: str) -> int:
        """Number of rows."""

    @abstractmethod
    def lengths(self, split: str) -> Sequence[int]:
        """Tokens of each row; 1 for an image."""

    @abstractmethod
    def batch(self, split: str, rows: Sequence[int]) -> Batch:
        """Model inputs of these rows, padded to the longest; `rows` holds the row numbers."""

    @abstractmethod
    def example(self, batch_size: int, seq_len: int | None) -> Batch:
        """Real inputs of exactly this shape, without padding."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of what the rows were made from: the texts or the pixels, split by split."""

    @abstractmethod
    def digests(self, split: str) -> Sequence[str]:
        """A short hash of each row of a split."""

    @property
    def seq_len(self) -> int | None:
        return None


class TokenRows(Inputs):
    """Tokenised rows.

    Args:
        encodings: split → for each row, model input name → ids.
        digest: hash of the texts.
        padding: model input name → what it is padded with.
        side: `right` or `left`.
    """

    def __init__(
        self,
        encodings: Mapping[str, Sequence[Mapping[str, list[int]]]],
        digest: str,
        padding: Mapping[str, int],
        side: str = "right",
    ):
        self._encodings, self._digest, self._padding, self._side = encodings, digest, padding, side
        self._typical = encodings[_shown(encodings)]

    def rows(self, split: str) -> int:
        return len(self._encodings[split])

    def lengths(self, split: str) -> list[int]:
        return [len(row["input_ids"]) for row in self._encodings[split]]

    def batch(self, split: str, rows: Sequence[int]) -> Batch:
        chosen = [self._encodings[split][row] for row in rows]
        longest = max(len(row["input_ids"]) for row in chosen)
        return {"rows": list(rows)} | {
            key: torch.tensor([self._padded(row[key], longest, self._padding.get(key, 0)) for row in chosen])
            for key in chosen[0]
        }

    def _padded(self, ids: list[int], longest: int, value: int) -> list[int]:
        filler = [value] * (longest - len(ids))
        return filler + ids if self._side == "left" else ids + filler

    def example(self, batch_size: int, seq_len: int | None) -> Batch:
        length = seq_len or self.seq_len
        stream = torch.tensor([token for row in self._typical for token in row["input_ids"]])
        ids = stream.repeat(-(-batch_size * length // len(stream)))[: batch_size * length].view(batch_size, length)
        others = [key for key in self._typical[0] if key != "input_ids"]
        return {"input_ids": ids} | {
            key: torch.ones_like(ids) if key == "attention_mask" else torch.zeros_like(ids) for key in others
        }

    def digests(self, split: str) -> list[str]:
        return [hash_texts([repr(row["input_ids"])]) for row in self._encodings[split]]

    def fingerprint(self) -> str:
        return self._digest

    @property
    def seq_len(self) -> int:
        """75th percentile of the lengths of the calibration rows (of all rows, where there are none), rounded up to a
        multiple of 16, at most 512."""
        typical = float(np.percentile([len(row["input_ids"]) for row in self._typical], 75))
        return min(LONGEST, -(-int(np.ceil(typical)) // 16) * 16)


def _shown(splits: Mapping[str, Sequence[Any]]) -> str:
    """The split that shapes are taken from: calibration, or certification of a task that only judges."""
    return "calibration" if splits.get("calibration") else "certification"


def tokenise(
    rows: Mapping[str, Sequence[tuple[str, ...]]], tokenizer: Any, max_length: Mapping[str, Sequence[int]] | int
) -> TokenRows:
    """Tokenise every row (one text, or a pair) of every split, truncated to `max_length` tokens (one, or one a row).

    Raises:
        DataError: there is no tokenizer, or a text gives no token.
    """
    require(tokenizer, "tokenizer")
    encodings = {}
    for split, texts in rows.items():
        limits = [max_length] * len(texts) if isinstance(max_length, int) else list(max_length[split])
        encoded: list[Mapping[str, list[int]]] = [{}] * len(texts)
        for limit in sorted(set(limits)):
            where = [row for row, own in enumerate(limits) if own == limit]
            result = tokenizer(
                *(list(column) for column in zip(*(texts[row] for row in where), strict=True)),
                truncation=True,
                max_length=limit,
                return_attention_mask=True,
            )
            for place, row in enumerate(where):
                encoded[row] = {key: result[key][place] for key in result}
        for made, text in zip(encoded, texts, strict=True):
            if not made["input_ids"]:
                raise DataError(f"The tokenizer makes no token of {text[0]!r:.60}. Remove the row.")
        encodings[split] = encoded
    digest = hash_texts(text for split in rows for row in rows[split] for text in (split, *row))
    return TokenRows(encodings, digest, padding_of(tokenizer), getattr(tokenizer, "padding_side", "right"))


def require(processor: Any, what: str) -> None:
    """Raises DataError when a model folder came without what this task needs."""
    if processor is None:
        raise DataError(f"The model has no {what}, and this task needs one. Save it into the model's folder.")


def padding_of(tokenizer: Any) -> dict[str, int]:
    """Model input name → padding; a tokenizer without padding token pads with its end token (masked anyway)."""
    candidates = (getattr(tokenizer, "pad_token_id", None), getattr(tokenizer, "eos_token_id", None), 0)
    pad = next(token for token in candidates if token is not None)
    return {"input_ids": pad, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0) or 0, "attention_mask": 0}


def longest_row(tokenizer: Any, asked: int | None, default: int = LONGEST) -> int:
    """Row length in tokens: what the user asked, else `default`, never more than the tokenizer says the model takes.

    Raises:
        DataError: `asked` is less than 4, or more than the model takes.
    """
    limit = getattr(tokenizer, "model_max_length", None) or default
    if asked is None:
        return int(min(default, limit))
    if not 4 <= asked <= limit:
        raise DataError(f"--max-length {asked} does not fit: this model takes 4 to {min(limit, 10**9)} tokens.")
    return asked


def hash_texts(texts: Iterable[str]) -> str:
    """16 hex digits; a separator keeps ("ab", "c") and ("a", "bc") apart."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


class ImageRows(Inputs):
    """Images through a Hugging Face image processor, one by one.

    Args:
        openers: split → for each row, a function that returns a PIL image in RGB.
        digests: split → for each row, a hash of its pixels or file.
    """

    def __init__(
        self, openers: Mapping[str, Sequence[Callable[[], Any]]], digests: Mapping[str, Sequence[str]], processor: Any
    ):
        require(processor, "image processor (preprocessor_config.json)")
        self._openers, self._digests, self._processor = openers, digests, processor
        self._cache: dict[tuple[str, int], Tensor] = {}
        self._bytes = 0

    def rows(self, split: str) -> int:
        return len(self._openers[split])

    def lengths(self, split: str) -> list[int]:
        return [1] * self.rows(split)

    def batch(self, split: str, rows: Sequence[int]) -> Batch:
        return {"rows": list(rows), "pixel_values": torch.stack([self._pixels(split, row) for row in rows])}

    def _pixels(self, split: str, row: int) -> Tensor:
        found = self._cache.get((split, row))
        if found is not None:
            return found
        pixels = self._processor(images=self._openers[split][row](), return_tensors="pt")["pixel_values"][0]
        if self._bytes + pixels.nbytes <= CACHE_BYTES:
            self._cache[split, row] = pixels
            self._bytes += pixels.nbytes
        return pixels

    def example(self, batch_size: int, seq_len: int | None) -> Batch:
        split = _shown(self._openers)
        count = self.rows(split)
        return {"pixel_values": torch.stack([self._pixels(split, i % count) for i in range(batch_size)])}

    def digests(self, split: str) -> Sequence[str]:
        return self._digests[split]

    def fingerprint(self) -> str:
        return hash_texts(part for split, digests in self._digests.items() for part in (split, *digests))
