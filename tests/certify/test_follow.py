"""Following a file: whole lines only, each once, over stops, rotations and cuts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autoquant.certify.follow import Follower, Stream
from autoquant.errors import DataError


def line(number: int) -> str:
    return json.dumps({"n": number})


def write(path: Path, *numbers: int, end: str = "\n") -> None:
    with open(path, "a") as file:
        file.write("\n".join(line(number) for number in numbers) + end)


def numbers(lines: list[str]) -> list[int]:
    return [json.loads(one)["n"] for one in lines]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    write(path, 1, 2, 3)
    return path


def test_lines_come_once_and_as_many_as_were_asked(log: Path) -> None:
    follower = Follower(log)
    assert numbers(follower.read(2)) == [1, 2]
    assert numbers(follower.read(9)) == [3] and follower.read(9) == []
    write(log, 4)
    assert numbers(follower.read(9)) == [4]


def test_a_half_written_line_waits_for_its_end(log: Path) -> None:
    follower = Follower(log)
    with open(log, "a") as file:
        file.write('{"n": ')
        file.flush()
        assert numbers(follower.read(9)) == [1, 2, 3]
        assert follower.read(9) == [] and follower.read(9, end=True) == []
        file.write("4}\n")
    assert numbers(follower.read(9)) == [4]


def test_at_the_end_a_whole_object_needs_no_newline(log: Path) -> None:
    write(log, 4, end="")
    follower = Follower(log)
    assert numbers(follower.read(9)) == [1, 2, 3]
    assert numbers(follower.read(9, end=True)) == [4] and follower.read(9, end=True) == []
    with open(log, "a") as file:
        file.write("\n")
    write(log, 5)
    assert numbers([one for one in follower.read(9) if one]) == [5]


def test_it_goes_on_where_it_was(log: Path) -> None:
    first = Follower(log)
    first.read(2)
    position = json.loads(json.dumps(first.position.to_dict()))
    write(log, 4)
    assert numbers(Follower(log, position).read(9)) == [3, 4]


def test_nothing_read_yet_is_a_position_too(log: Path) -> None:
    position = Follower(log).position.to_dict()
    assert numbers(Follower(log, position).read(9)) == [1, 2, 3]


def test_a_rotated_file_is_read_to_its_end_first(log: Path) -> None:
    follower = Follower(log)
    assert numbers(follower.read(2)) == [1, 2]
    os.rename(log, log.with_name("log.jsonl.1"))
    assert numbers(follower.read(1)) == [3], "the new file is not there yet"
    write(log, 4, 5)
    assert numbers(follower.read(9)) == [4, 5]
    write(log, 6)
    assert numbers(follower.read(9)) == [6]


def test_a_rotation_while_nobody_was_reading(log: Path) -> None:
    first = Follower(log)
    first.read(2)
    position = first.position.to_dict()
    first.close()
    write(log, 4)
    os.rename(log, log.with_name("log.jsonl.1"))
    write(log, 5)
    assert numbers(Follower(log, position).read(9)) == [3, 4, 5]


def test_a_file_that_was_replaced_and_is_gone_is_begun_anew(log: Path) -> None:
    first = Follower(log)
    first.read(9)
    position = first.position.to_dict()
    log.unlink()
    write(log, 7, 8, 9, 10)
    assert numbers(Follower(log, position).read(9)) == [7, 8, 9, 10]


@pytest.mark.parametrize("later", [(7,), (7, 8, 9, 10, 11)], ids=["shorter", "longer"])
def test_a_file_that_was_cut_off_in_place_is_read_from_its_beginning(log: Path, later: tuple[int, ...]) -> None:
    follower = Follower(log)
    follower.read(9)
    assert follower.position.length > 0
    os.truncate(log, 0)
    write(log, *later)
    assert numbers(follower.read(9)) == list(later)


def test_lines_longer_than_a_block_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 1, "text": "' + b"x" * 200_000 + b'"}\n\xff\xfe\n{"n": 2}\n')
    found = Follower(path).read(9)
    assert len(found) == 3 and numbers([found[0], found[2]]) == [1, 2]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        Follower(tmp_path / "nowhere.jsonl")


def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    stream = Stream(reading)
    os.write(writing, b'{"n": 1}\n{"n": 2}\n{"n"')
    assert numbers(stream.read(1)) == [1] and numbers(stream.read(9)) == [2]
    assert stream.read(9) == [] and not stream.ended
    os.write(writing, b": 3}")
    os.close(writing)
    assert numbers(stream.read(9)) == [3] and stream.ended
    os.close(reading)
