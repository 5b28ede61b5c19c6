"""Files that stages meet in: values to YAML or JSON and back, written atomically, with a schema version.

A file is written beside its target and renamed, so that a reader sees the old file or the new one, never half of one,
and a full disk leaves the old one. YAML goes through the safe loader only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from autoquant.errors import AutoquantError, CheckpointError, FolderError

SCHEMA_VERSION = 1
"""Version of every file that autoquant writes; raised when a reader of the old version would misread the new one."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it becomes `path`, on failure it is removed.

    Raises:
        AutoquantError: the disk is full, or the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise AutoquantError(
            f"Could not write {path}: {error.strerror or error}. What was there before is untouched; free some space "
            "or choose another --out folder, then continue with --resume."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf8")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` with the schema version in front. Non-finite floats become null: JSON has none."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **_finite(value)}, indent=1, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is not JSON or of a newer schema version."""
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}. Delete it to have it made again.") from error
    return _checked(value, path)


def write_yaml(path: Path, value: dict[str, Any], comment: str = "") -> None:
    body = yaml.safe_dump({"schema_version": SCHEMA_VERSION, **value}, sort_keys=False, width=120, allow_unicode=True)
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    write_text(path, head + body)


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is not a YAML mapping or of a newer schema version."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read as YAML: {error}") from error
    return _checked(value, path)


def _checked(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a mapping, but holds a {type(value).__name__}.")
    version = value.pop("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {version!r}; this autoquant reads up to {SCHEMA_VERSION}. Upgrade autoquant."
        )
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and hasattr(value, "shape") and math.prod(value.shape) == 1:
        return _finite(value.item())  # a scalar of numpy or torch
    return value


def fingerprint(value: Any) -> str:
    """A short stable hash of plain data: 16 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(_finite(value), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def empty_folder(path: Path, hint: str) -> Path:
    """Create `path`; refuse one that holds something. `hint` tells the user what to type instead.

    Raises:
        FolderError: the folder is not empty, or is a file.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FolderError(f"{path} exists and is not empty. {hint}")
    path.mkdir(parents=True, exist_ok=True)
    return path


def cache_folder() -> Path:
    """The user's cache folder of autoquant: what lies there can be deleted at any time, and is made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autoquant"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="autoquant-") as name:
        yield Path(name)


def folder_bytes(path: Path, pattern: str = "*.safetensors") -> int:
    """Bytes of the weight files below `path`: what a download of the weights costs."""
    return sum(file.stat().st_size for file in path.glob(pattern))
