"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from autoquant.checkpoint.maps import FILE_NAME
from autoquant.errors import AutoquantError, FolderError


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield an empty sibling folder; on success it takes the place of `out`, on failure it is removed.

    A killed process leaves `.NAME.partial-PID` behind at most; the next write to the same place removes it.

    Raises:
        FolderError: `out` is there and is no checkpoint of autoquant, which is never replaced.
        AutoquantError: the disk is full, or the folder cannot be written; `out` is untouched.
    """
    out = Path(os.path.abspath(out))
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / FILE_NAME).is_file()):
        raise FolderError(f"{out} exists and is no checkpoint of autoquant. Choose another folder, or empty this one.")
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        _replace(partial, out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AutoquantError(
            f"Could not write the checkpoint {out}: {reason}. What was there before is untouched; free some space or "
            "choose another --out folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, out: Path) -> None:
    if not out.exists():
        os.replace(partial, out)
        return
    old = out.parent / f".{out.name}.old-{os.getpid()}"  # a folder that is not empty cannot be renamed over
    os.replace(out, old)
    try:
        os.replace(partial, out)
    except OSError:
        os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(out: Path) -> None:
    pattern = re.compile(rf"^\.{re.escape(out.name)}\.(partial|old)-(\d+)$")
    for sibling in out.parent.iterdir():
        found = pattern.match(sibling.name)
        if not found or _alive(int(found.group(2))):
            continue
        if found.group(1) == "old" and not out.exists():
            os.replace(sibling, out)  # killed between the two renames: the old checkpoint is still whole
        else:
            shutil.rmtree(sibling, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
