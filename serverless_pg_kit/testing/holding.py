"""What a test server must give back: a process and a folder.

Apart from the server object, so that they can still be given back when that is garbage; and in one place, so that a
forked child, which inherits the object but owns neither, can be told from the owner.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from serverless_pg_kit.testing.errors import ServerError
from serverless_pg_kit.testing.process import Postmaster
from serverless_pg_kit.testing.workspace import Workspace

TIMEOUT = 60.0
"""Seconds that a start or a stop may take: far more than on a busy machine, so that it only ends what hangs."""


class Holding:
    """A process and a folder, both ``None`` until there is one, and the process id of their `owner`."""

    def __init__(self) -> None:
        self.owner: int = os.getpid()
        self.workspace: Workspace | None = None
        self.folder: Path | None = None
        self.postmaster: Postmaster | None = None
        self.closed: bool = False

    @property
    def running(self) -> bool:
        return os.getpid() == self.owner and self.postmaster is not None and self.postmaster.status is None

    def check_owner(self) -> None:
        if os.getpid() != self.owner:
            raise ServerError(f"the server belongs to process {self.owner}, of which this one is a fork")

    def require(self) -> Postmaster:
        if self.postmaster is None or not self.running:
            raise ServerError("the server does not run")
        return self.postmaster

    def occupy(self, workspace: Workspace) -> Path:
        self.workspace = workspace
        self.folder = workspace.new_folder("server")
        self.folder.mkdir()
        return self.folder

    def halt(self) -> None:
        """End the process by any means."""
        postmaster = self.postmaster
        if postmaster is None or not self.running:
            return
        if not postmaster.stop("immediate", TIMEOUT) and not postmaster.kill(TIMEOUT):
            postmaster.destroy()

    def delete(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def dispose(self) -> None:
        if os.getpid() != self.owner or self.closed:
            return
        self.halt()
        self.closed = True
        self.delete()
