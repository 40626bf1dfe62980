"""One temporary folder per process, in which all its test servers live.

It holds what the servers share (a copy of the binaries where the server's user cannot reach them, a freshly
initialised cluster to copy) and one folder per server. One folder to delete means that nothing is forgotten: it goes at
the exit of the process or, if that was killed, by the hand of a supervisor.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import ClassVar, TypeVar

from serverless_pg_kit.testing.accounts import Account, open_to_all, server_account
from serverless_pg_kit.testing.errors import ServerError

T = TypeVar("T")


class Workspace:
    """The folder of this process and the `account` that the servers run as (``None``: as oneself)."""

    _of_this_process: ClassVar[Workspace | None] = None
    _lock: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self) -> None:
        self.owner: int = os.getpid()
        self.account: Account | None = server_account()
        self.folder: Path = _private_folder(self.account)
        self._made: dict[Hashable, object] = {}
        self._count = 0
        weakref.finalize(self, _delete, self.folder, self.owner)

    @classmethod
    def current(cls) -> Workspace:
        """Return the workspace of this process; a forked child gets one of its own."""
        with cls._lock:
            if cls._of_this_process is None or cls._of_this_process.owner != os.getpid():
                cls._of_this_process = cls()
            return cls._of_this_process

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returned when it was first called for `key`."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]  # type: ignore[return-value]

    def new_folder(self, purpose: str) -> Path:
        """Return a folder that does not exist yet, named after `purpose`."""
        with self._lock:
            self._count += 1
            return self.folder / f"{purpose}-{self._count}"

    def give(self, path: Path) -> Path:
        """Make the server's user the owner of `path`, which must be ours, and close it to everybody else."""
        path.chmod(0o700 if path.is_dir() else 0o600)
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)
        return path


def _private_folder(account: Account | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="serverless-pg-kit-", dir=_temporary_root(account)))
    if account is not None:
        os.chown(folder, -1, account.gid)
        folder.chmod(0o750)
    return folder


def _temporary_root(account: Account | None) -> Path:
    usual = Path(tempfile.gettempdir())
    if account is None or open_to_all(usual):
        return usual
    for folder in (Path("/tmp"), Path("/var/tmp")):
        if folder.is_dir() and open_to_all(folder):
            return folder
    raise ServerError(f"user {account.name} cannot enter {usual}: set TMPDIR to a folder that every user may enter")


def _delete(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
