"""Files are whole or absent, and say which version they are."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from autoquant import artifacts
from autoquant.artifacts import (
    SCHEMA_VERSION,
    atomic,
    empty_folder,
    fingerprint,
    folder_bytes,
    read_json,
    read_yaml,
    write_json,
    write_text,
    write_yaml,
)
from autoquant.errors import AutoquantError, CheckpointError, FolderError

VALUE = {"a": 1, "list": [1.5, "zwei", None], "deep": {"b": True, "ä": "ö"}}


@pytest.mark.parametrize(
    ("write", "read", "suffix"), [(write_json, read_json, "json"), (write_yaml, read_yaml, "yaml")]
)
def test_round_trip_and_nothing_left_beside(write, read, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"value.{suffix}"
    write(path, VALUE)
    assert read(path) == VALUE
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert "schema_version" in path.read_text().splitlines()[0 if suffix == "yaml" else 1], "the version is read first"


def test_a_comment_heads_a_yaml(tmp_path: Path) -> None:
    write_yaml(tmp_path / "v.yaml", VALUE, comment="one\ntwo")
    assert (tmp_path / "v.yaml").read_text().startswith("# one\n# two\nschema_version")
    assert read_yaml(tmp_path / "v.yaml") == VALUE


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)), atomic(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with open(path) as reader:
        write_text(path, "new")
        assert reader.read() == "old" and path.read_text() == "new"


def test_a_full_disk_is_said_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with (
        pytest.raises(AutoquantError, match=r"No space left on device.*untouched.*--resume") as error,
        atomic(path) as temporary,
    ):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(path) in str(error.value)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AutoquantError, match="Could not write"):
        write_text(tmp_path / "file" / "below", "text")


def test_non_finite_numbers_become_null_and_numpy_becomes_plain(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    numbers = {"nan": math.nan, "inf": [math.inf, -math.inf], "np": np.float64(math.nan), "f32": np.float32(0.5)}
    write_json(
        path,
        {**numbers, "int": np.int64(3), "bool": np.bool_(True), "torch": torch.tensor(2.0), "tuple": (1, 2), 5: "key"},
    )
    assert json.loads(path.read_text()) == {
        "schema_version": SCHEMA_VERSION, "nan": None, "inf": [None, None], "np": None, "f32": 0.5, "int": 3, "bool": True,
        "torch": 2.0, "tuple": [1, 2], "5": "key",
    }  # fmt: skip


def test_a_numpy_scalar_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    write_json(tmp_path / "v.json", {"f32": np.float32(math.nan), "torch": torch.tensor(math.inf)})
    assert read_json(tmp_path / "v.json") == {"f32": None, "torch": None}


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, "2", None, 1.5])
def test_a_newer_or_odd_version_is_refused(version: object, tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(json.dumps({"schema_version": version, "a": 1}))
    (tmp_path / "v.yaml").write_text(yaml.safe_dump({"schema_version": version, "a": 1}))
    for read, name in ((read_json, "v.json"), (read_yaml, "v.yaml")):
        with pytest.raises(CheckpointError, match="schema version.*Upgrade"):
            read(tmp_path / name)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\x00"])
def test_what_is_no_mapping_is_refused_by_name(text: str, tmp_path: Path) -> None:
    for read, name in ((read_json, "v.json"), (read_yaml, "v.yaml")):
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match=name):
            read(tmp_path / name)
        with pytest.raises(CheckpointError, match="none"):
            read(tmp_path / "none")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for read in (read_json, read_yaml):
        (tmp_path / "v").write_bytes(b"\xff\xfe\xfa")
        with pytest.raises(CheckpointError):
            read(tmp_path / "v")


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    (tmp_path / "v.yaml").write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(CheckpointError, match="cannot be read as YAML"):
        read_yaml(tmp_path / "v.yaml")


def test_a_fingerprint_is_stable_over_releases_order_and_containers() -> None:
    assert fingerprint({"a": 1, "b": [1.5, None]}) == "993a7a2ceb877d40"
    assert fingerprint({"b": (1.5, math.nan), "a": 1}) == fingerprint({"a": 1, "b": [1.5, None]})
    assert fingerprint(Path("x")) == fingerprint("x")
    assert len({fingerprint(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, ["a", 1], "a", 1, None)}) == 7


def test_only_an_empty_or_new_folder_is_taken(tmp_path: Path) -> None:
    assert empty_folder(tmp_path / "a" / "b", "hint").is_dir()
    assert empty_folder(tmp_path / "a" / "b", "hint").is_dir()
    with pytest.raises(FolderError, match="not empty.*use --resume"):
        empty_folder(tmp_path / "a", "use --resume")
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError):
        empty_folder(tmp_path / "file", "hint")


def test_folder_bytes_counts_the_weight_files(tmp_path: Path) -> None:
    for name, size in (("one.safetensors", 10), ("two.safetensors", 5), ("config.json", 100)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert folder_bytes(tmp_path) == 15 and folder_bytes(tmp_path, "*.json") == 100
    assert artifacts.folder_bytes(tmp_path / "none") == 0
