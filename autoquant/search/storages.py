"""Where a study is kept: the run folder's journal, a database, or a server in front of one. And what to do when it is away.

Of a URL only the storage itself sees the password: everything that is written or said has `***` in its place.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from autoquant.errors import StorageError, UsageError

VARIABLE = "AUTOQUANT_STORAGE"
"""The environment variable that holds a storage's URL: it is not seen in a list of processes."""
HIDDEN = "***"
PATIENCE = 90.0
"""Seconds that a storage may be away."""
AWAY = {"OperationalError", "InterfaceError", "PendingRollbackError", "RpcError", "JSONDecodeError"}
"""Names of the errors (SQLAlchemy's, gRPC's, a journal's line that is being mended) after which the same may work again."""
DRIVERS = {"postgresql": "postgres", "grpc": "grpc"}
"""What a URL begins with → the extra that it needs."""
PORT = 13000

Found = TypeVar("Found")


def mask(url: str) -> str:
    """The URL without its password."""
    url = re.sub(r"(://[^:/?]*:).*@", rf"\1{HIDDEN}@", url)
    return re.sub(r"([?&](?:password|passwd|sslpassword)=)[^&]*", rf"\1{HIDDEN}", url)


def unmask(url: str) -> str:
    """The URL to connect with: the environment's, if that is the same; else the driver looks for a password by itself
    (PostgreSQL: PGPASSWORD, ~/.pgpass)."""
    if HIDDEN not in url:
        return url
    known = os.environ.get(VARIABLE, "")
    if mask(known) == url != known:
        return known
    return re.sub(r"[?&](?:password|passwd|sslpassword)=\*\*\*", "", url).replace(f":{HIDDEN}@", "@")


def check_url(url: str) -> None:
    """Raises UsageError when no storage has such a URL."""
    if not re.match(r"[a-z][a-z0-9]*(\+[a-z0-9]+)?://\S+$", url):
        raise UsageError(
            f"--storage {mask(url)}: expected a URL, as in postgresql+psycopg://user@host/database, "
            "sqlite:////folder/study.db or grpc://host:13000."
        )


def open_storage(where: str | Path) -> optuna.storages.BaseStorage:
    """The storage behind a URL, or the journal in a file.

    Raises:
        UsageError: no such storage, or its driver is not installed.
        StorageError: it does not answer.
    """
    if isinstance(where, Path):
        return JournalStorage(JournalFileBackend(str(where), lock_obj=JournalLock(where)))
    check_url(where)
    url = unmask(where)
    kind = re.split(r"[+:]", url)[0]
    try:
        if kind == "grpc":
            host, _, port = url.removeprefix("grpc://").strip("/").partition(":")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.storages.GrpcStorageProxy(host=host, port=int(port or PORT))
        # A connection that died while nobody used it is noticed before it is used.
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        return optuna.storages.get_storage(storage)
    except ImportError as error:
        extra = DRIVERS.get(kind)
        what = f"pip install 'autoquant-search[{extra}]'" if extra else "pip install the driver that its URL names"
        raise UsageError(f"--storage {mask(url)}: the driver is not installed ({error}). Try: {what}") from error
    except Exception as error:
        if _is_away(error):
            raise
        first = mask(str(error)).splitlines()[0]
        raise UsageError(f"--storage {mask(url)} cannot be opened: {type(error).__name__}: {first}") from error


def check_storage(where: str | Path) -> None:
    """Find out now whether a database can be opened, rather than after minutes of other work.

    Raises:
        UsageError: no such storage, or its driver is not installed.
        StorageError: it does not answer.
    """
    if isinstance(where, Path):
        return
    storage = patiently(lambda: open_storage(where), seconds=5)
    patiently(storage.get_all_studies, seconds=5)


def storage_environment(where: str | Path) -> dict[str, str]:
    """Variables by which a process that this one starts gets at the storage, too."""
    return {} if isinstance(where, Path) else {VARIABLE: unmask(where)}


class JournalLock(JournalFileOpenLock):
    """The kernel's lock on a file, which a killed process gives back at once. (Optuna's own is a file that it leaves behind.)

    A process that is killed while it writes leaves half a line at the journal's end, over which Optuna would stumble: whoever
    writes next removes it.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        file = open(self.journal, "rb+")  # noqa: SIM115 - closed in `release`
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        self._file = file
        return True

    def release(self) -> None:
        assert self._file is not None
        self._file.close()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run folder: one process at a time leads its search.

    Raises:
        UsageError: another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "search.lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"Another process is searching in {folder}. To help it: autoquant worker {folder}"
            ) from error
        yield


def patiently(
    do: Callable[[], Found], say: Callable[[str], None] = lambda text: None, seconds: float | None = None
) -> Found:
    """The result of `do`, which is tried again while the storage is away.

    Args:
        do: something that may be done twice: a connection can be lost after a commit and before its answer.

    Raises:
        StorageError: it was away for longer than `seconds`.
    """
    begin, wait = time.monotonic(), 0.2
    while True:
        try:
            return do()
        except Exception as error:
            if not _is_away(error):
                raise
            first = mask(_cause(error)).strip().splitlines()[0]
            if time.monotonic() - begin > (PATIENCE if seconds is None else seconds):
                raise StorageError(
                    f"The study's storage does not answer: {first}. All that was found is in it. When it is back, go on with: "
                    "autoquant search --resume RUN (or autoquant worker RUN)."
                ) from error
            if wait == 0.2:
                say(f"the study's storage does not answer ({first}); trying again for {PATIENCE:.0f} s")
            time.sleep(wait)
            wait = min(2 * wait, 3.0)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_away(error: BaseException) -> bool:
    return any(kind.__name__ in AWAY for one in _chain(error) for kind in type(one).__mro__)


def _cause(error: BaseException) -> str:
    """What the driver said, where it said something."""
    texts = [getattr(one, "details", lambda: None)() or str(one) for one in _chain(error)]
    return next((text for text in reversed(texts) if text and text.strip()), type(error).__name__)
