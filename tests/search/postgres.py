"""A PostgreSQL server of one's own, for as long as a test needs it: on a unix socket in a temporary folder, run by a user who
is not root."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
USER = "postgres"


def find(name: str) -> str | None:
    """A program of PostgreSQL, also where it is not on the PATH."""
    found = [path for place in PLACES for path in sorted(glob.glob(f"{place}/{name}"), reverse=True)]
    return found[0] if found else shutil.which(name)


def missing() -> str | None:
    """Why there can be no server here; None if there can."""
    for name in ("initdb", "postgres"):
        if find(name) is None:
            return f"PostgreSQL is not installed: no {name}"
    if importlib.util.find_spec("psycopg") is None:
        return "the extra [postgres] is not installed: no psycopg"
    if os.getuid() == 0:
        try:
            pwd.getpwnam(USER)
        except KeyError:
            return f"root may not run PostgreSQL, and there is no user '{USER}'"
    return None


class Server:
    """A server that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = pwd.getpwnam(USER) if os.getuid() == 0 else None
        if self.owner:
            os.chown(folder, self.owner.pw_uid, self.owner.pw_gid)
        self._run("initdb", "-D", str(folder / "data"), "-U", USER, "--auth", "trust", "-E", "UTF8", "--no-sync")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def new(self) -> str:
        """The URL of a new, empty database; its password is not asked for."""
        import psycopg

        name = f"study_{secrets.token_hex(4)}"
        with psycopg.connect(host=str(self.folder), user=USER, dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{USER}:secret@/{name}?host={self.folder}"

    def start(self) -> None:
        """Start it and wait until it answers; after `kill` it recovers by itself."""
        program = find("postgres")
        assert program is not None
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [program, "-D", str(self.folder / "data"), "-k", str(self.folder), "-c", "listen_addresses="],
                stdout=log, stderr=log, start_new_session=True, **self._as_owner(),
            )  # fmt: skip
        import psycopg

        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(host=str(self.folder), user=USER, dbname="postgres").close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def kill(self) -> None:
        """kill −9, of the server and of the processes that it started, as if the machine had gone down."""
        assert self.process is not None
        children = _children(self.process.pid)
        self.process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.process.wait()
        for child in children:
            while Path(f"/proc/{child}").exists():
                time.sleep(0.01)

    def _run(self, name: str, *arguments: str) -> None:
        program = find(name)
        assert program is not None
        subprocess.run([program, *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/", **self._as_owner())

    def _as_owner(self) -> dict:
        return {} if self.owner is None else {"user": self.owner.pw_uid, "group": self.owner.pw_gid, "extra_groups": []}


def _children(pid: int) -> list[int]:
    found = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(Path(path).read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found.append(int(path.split("/")[2]))
    return found


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A server, gone afterwards; the path of its socket must be short."""
    folder = Path(tempfile.mkdtemp(prefix="aq-pg-", dir="/tmp"))
    try:
        found = Server(folder)
        try:
            yield found
        finally:
            found.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
