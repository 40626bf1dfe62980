"""The test run's side of `warden`: what has to go when this process is gone, however that comes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from serverless_pg_kit.testing import warden


class Wards:
    """The process groups and folders of this process; a forked child has its own."""

    _of_this_process: ClassVar[Wards | None] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self.owner: int = os.getpid()
        inner, self._orders = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", warden.__file__, str(self.owner)],
            stdin=inner,
            stdout=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        os.close(inner)
        process.returncode = 0  # it outlives this process: nobody waits for it, and nobody is warned of that

    @classmethod
    def current(cls) -> Wards:
        """Return that of this process."""
        with cls._lock:
            if cls._of_this_process is None or cls._of_this_process.owner != os.getpid():
                cls._of_this_process = cls()
            return cls._of_this_process

    def keep(self, kind: str, name: int | Path) -> None:
        """Let the ``group`` or ``folder`` `name` be gone when this process is."""
        self._say(f"+{kind} {name}\n")

    def forget(self, kind: str, name: int | Path) -> None:
        """Let go of what is gone already."""
        self._say(f"-{kind} {name}\n")

    def _say(self, order: str) -> None:
        with suppress(BrokenPipeError):
            os.write(self._orders, order.encode())
