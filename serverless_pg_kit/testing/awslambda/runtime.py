"""One execution environment, from the start of its process to the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from serverless_pg_kit.testing.awslambda.api import RuntimeApi
from serverless_pg_kit.testing.awslambda.environment import Function
from serverless_pg_kit.testing.awslambda.errors import InitFailed, RuntimeExited
from serverless_pg_kit.testing.awslambda.invocation import Invocation
from serverless_pg_kit.testing.awslambda.process import RuntimeProcess

TAIL = 2000
"""Characters of the log that an error shows."""


class Environment:
    """A process of `function` and its API. `log` and `temporary` belong to the container, and outlive it.

    Whoever makes it kills it.
    """

    def __init__(self, function: Function, log: Path, temporary: Path, *, refuses_extensions: bool) -> None:
        self.function: Function = function
        self.log: Path = log
        self._under_way: set[Invocation] = set()
        self._lock = threading.Lock()
        self.api: RuntimeApi = RuntimeApi(
            function.arn, has_workers=function.workers is not None, refuses_extensions=refuses_extensions
        )
        try:
            variables = function.variables(self.api.address, temporary)
            self.process: RuntimeProcess = RuntimeProcess(
                function.command(), variables, function.folder, log, self._ended
            )
        except BaseException:
            self.api.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return not self.process.ended.is_set()

    def wait_until_ready(self, timeout: float, workers: int | None = None) -> None:
        """Wait until so many `workers` ask for events, or all; at most `timeout` seconds. Raises `InitFailed`."""
        idle = workers or self.function.workers or 1
        self._wait(lambda left: self.api.wait_for_call(idle=idle, timeout=left), timeout)

    def wait_for_snapshot(self, timeout: float) -> None:
        """Wait until its initialisation and the hooks before the snapshot are done. Raises `InitFailed`."""
        self._wait(lambda left: self.api.wait_for_call(idle=0, timeout=left), timeout)

    def handle(self, invocation: Invocation, patience: float) -> None:
        """Let `invocation` be over: with its result, with an error, or because its time is up.

        Waits for at most `patience` seconds until the function takes it.
        """
        with self._lock:
            self._under_way.add(invocation)
        try:
            self.api.give(invocation)
            if not self.is_alive:
                self._lose(invocation)
            invocation.wait_until_begun(patience)
            invocation.wait()
        finally:
            self.api.withdraw(invocation)
            with self._lock:
                self._under_way.discard(invocation)

    def kill(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.api.close()

    def tail(self) -> str:
        """Return the end of the log; nothing if the container was closed meanwhile."""
        with suppress(FileNotFoundError):
            return self.log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        return ""

    def _wait(self, arrives: Callable[[float], bool], timeout: float) -> None:
        if arrives(timeout):
            return
        report = self.api.init_error
        if report is None and self.api.is_closed:
            self.process.ended.wait()
            text = f"the process ended with status {self.process.status}"
            report = {"errorType": "Runtime.ExitError", "errorMessage": text}
        elif report is None:
            report = {"errorType": "Sandbox.Timedout", "errorMessage": f"not ready after {timeout:g} s"}
        raise InitFailed("the function could not be started", report, log=self.tail())

    def _ended(self, status: int) -> None:
        self.api.interrupt()
        with self._lock:
            lost = list(self._under_way)
        for invocation in lost:
            self._lose(invocation)

    def _lose(self, invocation: Invocation) -> None:
        invocation.fail(RuntimeExited(self.process.status, log=self.tail()))
