"""The process of the runtime client, with all that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from serverless_pg_kit.testing import groups
from serverless_pg_kit.testing.cgroups import Cgroup, make_cgroup
from serverless_pg_kit.testing.wards import Wards


class RuntimeProcess:
    """A process group, in a control group of its own where that is possible.

    When its first process ends, however that comes, the others are killed, `ended` is set, and `on_end` called with the
    exit status. What it prints goes to the file `log`.
    """

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], folder: Path, log: Path, on_end: Callable[[int], None]
    ) -> None:
        self.ended: threading.Event = threading.Event()
        self._on_end = on_end
        self._lock = threading.Lock()
        self._is_over = False
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environ,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid: int = self._process.pid
        Wards.current().keep("group", self.pid)
        self._cgroup = self._enclose()
        threading.Thread(target=self._watch, name=f"process {self.pid}", daemon=True).start()

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while it runs."""
        return self._process.returncode

    def freeze(self) -> None:
        """Stop all of it where it is, and wait until it stands still."""
        self._each(self._freeze)

    def thaw(self) -> None:
        """Let it go on."""
        self._each(self._thaw)

    def terminate(self) -> None:
        """Send SIGTERM to the first process, as the platform does."""
        self._each(lambda group: os.kill(group, signal.SIGTERM))

    def kill(self) -> None:
        """End all of it, and wait for that."""
        self._each(self._kill)
        self.ended.wait()

    def _enclose(self) -> Cgroup | None:
        cgroup = make_cgroup()
        if cgroup is not None:
            Wards.current().keep("cgroup", cgroup.folder)
            try:
                cgroup.take(self.pid)
            except OSError:
                self._release(cgroup)
                return None
        return cgroup

    def _release(self, cgroup: Cgroup) -> None:
        cgroup.remove()
        Wards.current().forget("cgroup", cgroup.folder)

    def _each(self, act: Callable[[int], None]) -> None:
        with self._lock:  # the number of a group that is gone may be given to another
            if not self._is_over:
                act(self.pid)

    def _freeze(self, group: int) -> None:
        if self._cgroup is not None:
            self._cgroup.freeze()
        else:
            groups.freeze(group)
            os.waitid(os.P_PID, group, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _thaw(self, group: int) -> None:
        if self._cgroup is not None:
            self._cgroup.thaw()
        groups.thaw(group)

    def _kill(self, group: int) -> None:
        groups.kill(group)
        if self._cgroup is not None:
            with suppress(OSError):
                self._cgroup.kill()

    def _watch(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._kill(self.pid)
            self._process.wait()
            self._is_over = True
        if self._cgroup is not None:
            self._release(self._cgroup)
        Wards.current().forget("group", self.pid)
        self.ended.set()  # first: who comes now finds it ended, who came before is told
        self._on_end(self._process.returncode)
