"""The postmaster as seen from the test run: a supervisor process, and behind it the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from serverless_pg_kit.testing import supervisor
from serverless_pg_kit.testing.accounts import Account
from serverless_pg_kit.testing.errors import ServerError

StopMode = Literal["smart", "fast", "immediate"]

STOP_SIGNALS: dict[str, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


class Postmaster:
    """A server process under supervision; `pid` is its process id.

    Only the process that made it may end it. It ends by itself when that process is gone.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        account: Account | None,
        data: Path,
        log: Path,
        folder: Path,
    ) -> None:
        order: supervisor.Order = {
            "parent": os.getpid(),
            "command": list(command),
            "environ": dict(environ),
            "user": _user(account),
            "data": str(data),
            "folder": str(folder),
        }
        with log.open("ab") as output:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(order)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the tests, which then stop the server in their own order
            )
        self.pid: int = self._read_pid()

    def _read_pid(self) -> int:
        pipe = self._supervisor.stdout
        assert pipe is not None
        try:
            with pipe:
                return int(pipe.readline())
        except ValueError as error:
            self.destroy()
            raise ServerError("the process that supervises the server did not start") from error
        except BaseException:
            self.destroy()
            raise

    @property
    def status(self) -> int | None:
        """Exit status of the server, once it and all its children have ended."""
        return self._supervisor.poll()

    def stop(self, mode: StopMode, timeout: float) -> bool:
        """Shut down in that `mode` and tell whether the server ended within `timeout` seconds."""
        self._supervisor.send_signal(STOP_SIGNALS[mode])
        return self._ended(timeout)

    def kill(self, timeout: float) -> bool:
        """Kill the server and all its children with SIGKILL; tell whether all were gone within `timeout` seconds."""
        self._supervisor.send_signal(supervisor.KILL_ALL)
        return self._ended(timeout)

    def destroy(self) -> None:
        """Kill the supervisor, which ends the server by its parent-death signal: the last resort."""
        self._supervisor.kill()
        self._supervisor.wait()

    def _ended(self, timeout: float) -> bool:
        try:
            self._supervisor.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True


def _user(account: Account | None) -> supervisor.User | None:
    if account is None:
        return None
    return {"uid": account.uid, "gid": account.gid, "groups": list(account.groups)}
