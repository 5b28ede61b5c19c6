"""Every error that autoquant raises on purpose, in one tree.

    AutoquantError                 exit code 1: something failed although the request made sense
    ├── UsageError (ValueError)    exit code 2: the request cannot work as typed
    │   ├── DataError              a data file, column, label or split that cannot be used
    │   ├── ModelError             a model that cannot be loaded, or has nothing to quantize
    │   ├── SchemeError            an unknown scheme, or one that does not fit a layer
    │   ├── SpaceError             a search space YAML that says something impossible
    │   ├── LayerMapError          a layer map that does not fit the model, or is malformed
    │   └── FolderError            an output folder that is not empty, a run that cannot be resumed
    ├── NumericsError              NaN or infinity where a finite number is needed, named
    ├── CheckpointError            a checkpoint that is incomplete, corrupt or of an unknown version
    ├── StorageError               the storage of a study does not answer
    └── StaleError                 a stage's input was made from another model, task or setting

A message says what was wrong, where, which choices are valid and what to type next. `UsageError` is a `ValueError`
so that code which knows nothing of autoquant handles it as one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutoquantError(Exception):
    exit_code = 1


class UsageError(AutoquantError, ValueError):
    exit_code = 2


class DataError(UsageError):
    pass


class ModelError(UsageError):
    pass


class SchemeError(UsageError):
    pass


class SpaceError(UsageError):
    pass


class LayerMapError(UsageError):
    pass


class FolderError(UsageError):
    pass


class NumericsError(AutoquantError):
    pass


class CheckpointError(AutoquantError):
    pass


class StorageError(AutoquantError):
    pass


class StaleError(AutoquantError):
    pass


def nearest(name: str, valid: Iterable[str]) -> str:
    """The tail of an error message: the nearest valid name if there is one, and all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Valid: {', '.join(names)}."


def pick(table: dict, name: str, what: str, error: type[UsageError] = UsageError):
    """table[name], or an error that names the nearest valid key."""
    if name not in table:
        raise error(f"Unknown {what} '{name}'.{nearest(name, table)}")
    return table[name]


def reject_unknown(given: Iterable[str], valid: Iterable[str], where: str, error: type[UsageError]) -> None:
    """Raise `error` for the first key of `given` that is not in `valid`, with the nearest valid key."""
    valid = list(valid)
    for key in given:
        if key not in valid:
            raise error(f"{where}: unknown key '{key}'.{nearest(key, valid)}")
