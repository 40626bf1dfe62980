"""The kernel's freezer for a whole tree of processes, where this process may use it: as root, mostly.

Unlike a signal it is noticed by nobody, and holds processes that have left their group, too. It has two interfaces, of
control groups 1 and 2.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PATIENCE = 10.0
"""Seconds for the kernel to freeze all, or for a group to become empty."""

POLL = 0.0005


class Interface(NamedTuple):
    """Where groups are made, and what is written to and read from the files of one."""

    root: Path
    switch: str
    frozen: str
    thawed: str
    state: str
    is_frozen: str


INTERFACES = (
    Interface(Path("/sys/fs/cgroup/freezer"), "freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN"),
    Interface(Path("/sys/fs/cgroup"), "cgroup.freeze", "1", "0", "cgroup.events", "frozen 1"),
)


class Cgroup:
    """A control group of its own in `folder`. Remove it when its processes are gone."""

    def __init__(self, folder: Path, interface: Interface) -> None:
        self.folder: Path = folder
        self._interface = interface

    def take(self, pid: int) -> None:
        """Take a process in; its children follow. Raises ``OSError``."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def freeze(self) -> None:
        """Let all processes stand still, and wait until they do. Raises ``TimeoutError``."""
        (self.folder / self._interface.switch).write_text(self._interface.frozen)
        state = self.folder / self._interface.state
        wait_for(lambda: self._interface.is_frozen in state.read_text(), f"{self.folder} does not freeze")

    def thaw(self) -> None:
        """Let them go on."""
        (self.folder / self._interface.switch).write_text(self._interface.thawed)

    def kill(self) -> None:
        """End them all, frozen or not. Raises ``OSError``."""
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.thaw()  # version 1 kills nobody who is frozen

    def remove(self) -> None:
        """Give the group back, once its processes are gone. What cannot be removed is left."""
        with suppress(OSError):
            wait_for(lambda: not (self.folder / "cgroup.procs").read_text(), f"{self.folder} is not empty")
            self.folder.rmdir()


def make_cgroup() -> Cgroup | None:
    """Return a new group, ``None`` where that is not possible or not allowed."""
    for interface in INTERFACES:
        folder = interface.root / f"serverless-pg-kit-{uuid.uuid4()}"
        with suppress(OSError):
            folder.mkdir()
            if (folder / interface.switch).exists():
                return Cgroup(folder, interface)
            folder.rmdir()
    return None


def wait_for(condition: Callable[[], bool], problem: str) -> None:
    """Wait until `condition` holds. Raises ``TimeoutError`` with `problem`."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(problem)
        time.sleep(POLL)
