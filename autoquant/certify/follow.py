"""Read the lines of a file that is being appended to, and go on after a stop; or those of stdin.

Only whole lines are given out: the half-written last one waits for its end. A file that was moved away and begun anew (log
rotation) is read to its end first, also when that happened while nobody was reading and the old file still lies beside it
(`FILE.1`, …). A file that was cut off in place is read from its beginning.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from autoquant.errors import DataError

HEAD = 256
"""Bytes at a file's beginning by which it is recognised: an inode number may be given to another file."""

BLOCK = 1 << 16


@dataclass(frozen=True)
class Position:
    """How far a file has been read: `offset` is the end of the last line given out; `head` a hash of the first `length`
    bytes."""

    inode: int
    offset: int
    head: str
    length: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Follower:
    """The lines of `path` from `position` on.

    Raises:
        DataError: there is no such file.
    """

    def __init__(self, path: str | Path, position: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"There is no file {path} to watch. Give a jsonl file, or '-' for stdin.")
        before = None if position is None else Position(**position)
        self._file: IO[bytes] = self._find(before)
        self._offset = 0 if before is None or not _is(self._file, before) else before.offset
        self._head = b""

    @property
    def position(self) -> Position:
        """Where to go on, once the lines given out have been dealt with."""
        if len(self._head) < HEAD:
            self._file.seek(0)
            self._head = self._file.read(min(HEAD, self._offset))
        status = os.fstat(self._file.fileno())
        return Position(status.st_ino, self._offset, _hash(self._head), len(self._head))

    def read(self, count: int, end: bool = False) -> list[str]:
        """Up to `count` lines that are there now; empty when there are none.

        Args:
            end: nothing more may be written: give out the last line without its newline, too, if it is a whole object.
        """
        found: list[str] = []
        while len(found) < count:
            lines = self._whole_lines(count - len(found), end and not self._moved())
            if lines:
                found += lines
            elif not self._next():
                break
        return found

    def close(self) -> None:
        self._file.close()

    def _whole_lines(self, count: int, end: bool) -> list[str]:
        if os.fstat(self._file.fileno()).st_size < self._offset or not self._same_head():  # cut off in place
            self._offset, self._head = 0, b""
        self._file.seek(self._offset)
        content = b""
        while content.count(b"\n") < count and (block := self._file.read(BLOCK)):
            content += block
        *whole, rest = content.split(b"\n")
        if len(whole) >= count:
            whole = whole[:count]
        elif rest and ((end and _is_json(rest)) or self._moved()):  # nobody will finish it
            whole.append(rest)
            self._offset -= 1  # it has no newline
        self._offset += sum(len(line) + 1 for line in whole)
        return [line.decode("utf8", "replace") for line in whole]

    def _same_head(self) -> bool:
        self._file.seek(0)
        return self._file.read(len(self._head)) == self._head

    def _moved(self) -> bool:
        """Whether another file has taken this one's name."""
        try:
            return os.stat(self.path).st_ino != os.fstat(self._file.fileno()).st_ino
        except OSError:
            return False  # between the two steps of a rotation

    def _next(self) -> bool:
        """Go on with the file that now has the name; False if that is the one that was read."""
        if not self._moved():
            return False
        try:
            file = open(self.path, "rb")  # noqa: SIM115  it is followed for as long as this lives
        except OSError:
            return False
        self._file.close()
        self._file, self._offset, self._head = file, 0, b""
        return True

    def _find(self, before: Position | None) -> IO[bytes]:
        """The file that was being read, wherever it was moved to beside `path`; else the one at `path`."""
        if before is not None:
            for path in (self.path, *sorted(self.path.parent.glob(f"{self.path.name}.*"))):
                if path.is_file():
                    file = open(path, "rb")  # noqa: SIM115
                    if _is(file, before):
                        return file
                    file.close()
        return open(self.path, "rb")


class Stream:
    """Lines of a pipe, such as stdin; it has no position to go back to."""

    position = None

    def __init__(self, handle: int) -> None:
        self._handle, self._rest, self.ended = handle, b"", False

    def read(self, count: int, end: bool = False) -> list[str]:
        """Up to `count` whole lines that are there now, after waiting for a moment; at the pipe's end also an unfinished one."""
        while self._rest.count(b"\n") < count and not self.ended and select.select([self._handle], [], [], 0.2)[0]:
            block = os.read(self._handle, BLOCK)
            self.ended = not block
            self._rest += block
        *whole, rest = self._rest.split(b"\n", count)
        if self.ended and len(whole) < count and rest:
            whole, rest = [*whole, rest], b""
        self._rest = rest
        return [line.decode("utf8", "replace") for line in whole]

    def close(self) -> None:
        """Others may still need the handle."""


def _is(file: IO[bytes], before: Position) -> bool:
    """Whether this is the file that was read so far: same inode, same beginning, not cut off."""
    status = os.fstat(file.fileno())
    if status.st_ino != before.inode or status.st_size < before.offset:
        return False
    file.seek(0)
    return _hash(file.read(before.length)) == before.head


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
