"""The platform around one execution environment: it starts it, gives it events, freezes it, ends it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from serverless_pg_kit.testing.awslambda.environment import Function
from serverless_pg_kit.testing.awslambda.errors import InvocationError, InvocationTimedOut
from serverless_pg_kit.testing.awslambda.invocation import Invocation
from serverless_pg_kit.testing.wards import Wards

if TYPE_CHECKING:
    from serverless_pg_kit.testing.awslambda.runtime import Environment

GRACE = 0.5
"""Seconds that Lambda leaves a function that is its own extension; 0.3 if it has external extensions, too."""

INIT_TIMEOUT = 30.0
"""Seconds for the initialisation. Lambda leaves 10, on a machine that has nothing else to do."""


class LambdaContainer:
    """A container of a Lambda function: AWS's own runtime client, ``awslambdaric``, in a process of its own.

    `handler` is ``"module.name"``; the module is found from `folder`, which is also the working folder. `environment`
    goes on top of this process's. `timeout` is the function's time limit in seconds, `init_timeout` that of its
    initialisation. The process is started by the first invocation, or by `start`.

    With `frozen` it stands still between invocations, as on Lambda: that takes a few milliseconds for each. With
    `snap_start` it is initialised as for a snapshot, with the hooks before it and after. `workers` makes it one of
    Managed Instances: that many processes, which serve one invocation each, and time limits that end nothing.

    It is a context manager, and may be used from several threads. At the end of the block, by `close`, all its
    processes are killed and its files deleted; likewise when this process ends in whatever way.
    """

    def __init__(
        self,
        handler: str,
        *,
        folder: str | os.PathLike[str] = ".",
        environment: Mapping[str, str] | None = None,
        timeout: float = 3.0,
        init_timeout: float = INIT_TIMEOUT,
        frozen: bool = False,
        snap_start: bool = False,
        workers: int | None = None,
        name: str = "function",
        memory: int = 128,
        refuses_extensions: bool = False,
    ) -> None:
        if workers is not None and (workers < 1 or snap_start or frozen):
            raise ValueError("workers: at least 1; Managed Instances know neither snapshots nor freezing")
        if "." not in handler:
            raise ValueError(f"handler {handler!r}: write it as 'module.name'")
        place = Path(folder).resolve(strict=True)
        self._function = Function(handler, place, dict(environment or {}), name, memory, workers, snap_start)
        self._timeout = timeout
        self._init_timeout = init_timeout
        self._freezes = frozen
        self._refuses_extensions = refuses_extensions
        self._owner = os.getpid()
        self._environment: Environment | None = None
        self._turn = threading.BoundedSemaphore(workers or 1)
        self._starting = threading.Lock()
        self._is_ready = False
        self._is_closed = False
        self.starts: int = 0
        """How many processes were started: one, and one more after each that ended."""
        self._folder = Path(tempfile.mkdtemp(prefix="serverless-pg-kit-lambda-"))
        Wards.current().keep("folder", self._folder)
        self.tmp: Path = self._folder / "tmp"
        """The folder for temporary files of the function (``TMPDIR``). It outlives its processes."""
        self.tmp.mkdir()
        self._log = self._folder / "log"
        self._log.touch()

    def __enter__(self) -> LambdaContainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def log(self) -> str:
        """What the function has printed and logged so far, in all its processes; nothing once it is closed."""
        with suppress(FileNotFoundError):
            return self._log.read_text(encoding="utf-8", errors="replace")
        return ""

    @property
    def pid(self) -> int | None:
        """The process's id; ``None`` if none runs."""
        environment = self._running()
        return None if environment is None else environment.process.pid

    @property
    def extensions(self) -> list[dict[str, Any]]:
        """What the last process has registered as extensions: the ``name`` of each and its ``events``."""
        return [] if self._environment is None else list(self._environment.api.extensions)

    @property
    def calls(self) -> list[str]:
        """The paths of Lambda's API that the last process has asked for, in order."""
        return [] if self._environment is None else list(self._environment.api.calls)

    def start(self) -> None:
        """Start a process if none runs, and wait until it asks for its first event.

        With `snap_start` that includes the snapshot and its restore. Raises `InitFailed`; the next attempt starts anew.
        """
        self._ready()

    def take_snapshot(self) -> None:
        """Start a process as far as its snapshot: initialised, hooks done. The next invocation restores it.

        Raises `InitFailed`, and ``ValueError`` without `snap_start`.
        """
        if not self._function.snap_start:
            raise ValueError("take_snapshot() needs snap_start=True")
        with self._starting:
            self._start()

    def invoke(self, event: object, *, timeout: float | None = None) -> Any:
        """Let the function handle `event`, which is sent as JSON, and return its result, decoded from JSON.

        `timeout` is the time limit of this one, in seconds. Raises an `InvocationError`: `HandlerFailed`,
        `InvocationTimedOut`, `RuntimeExited`, `InitFailed`.
        """
        invocation = self._accept(event, timeout)
        self._serve(invocation)
        return invocation.result()

    def start_invocation(self, event: object, *, timeout: float | None = None) -> Invocation:
        """Let the function handle `event`, and do not wait for it: call `Invocation.result` for that.

        Raises ``RuntimeError`` while it handles another one; on Managed Instances, as many as there are workers.
        """
        invocation = self._accept(event, timeout)
        threading.Thread(target=self._serve, args=[invocation], name="invocation", daemon=True).start()
        return invocation

    def wait_until_idle(self) -> None:
        """Wait until the function asks for its next event, so that all is done that follows the latest one; on Managed
        Instances, until a worker does. Raises `InitFailed` if none comes to that."""
        environment = self._running()
        if environment is not None:
            environment.wait_until_ready(self._init_timeout, workers=1)

    def freeze(self) -> None:
        """Let the whole process group stand still where it is. The kernel keeps its connections open."""
        environment = self._running()
        if environment is not None:
            environment.process.freeze()

    def thaw(self) -> None:
        """Let it go on. An invocation thaws by itself."""
        environment = self._running()
        if environment is not None:
            environment.process.thaw()

    def shut_down(self, grace: float | None = None) -> int | None:
        """End the process as Lambda removes a container, and return its exit status, negative for a signal; ``None`` if
        none ran.

        A function that has registered an extension gets SIGTERM, and `grace` seconds later SIGKILL: 0.5, and 0.3 if it
        had external extensions, too. Without an extension it is killed at once.
        """
        environment = self._running()
        if environment is None:
            return None
        if grace is None:
            grace = GRACE if environment.api.extensions else 0.0
        environment.process.thaw()
        if grace:
            environment.process.terminate()
            environment.process.ended.wait(grace)
        environment.kill()
        return environment.process.status

    def close(self) -> None:
        """Kill what runs and delete the container's files. It may be called again. A forked child closes nothing."""
        if self._is_closed or os.getpid() != self._owner:
            return
        with self._starting:
            self._is_closed = True
            if self._environment is not None:
                self._environment.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        Wards.current().forget("folder", self._folder)

    def _accept(self, event: object, timeout: float | None) -> Invocation:
        body = json.dumps(event).encode()
        if not self._turn.acquire(blocking=False):
            raise RuntimeError("the container handles another event; Lambda would start another container")
        return Invocation(body, self._timeout if timeout is None else timeout)

    def _serve(self, invocation: Invocation) -> None:
        try:
            environment = self._ready()
            environment.process.thaw()
            environment.handle(invocation, self._init_timeout)
            if not invocation.is_over:
                self._time_out(environment, invocation)
            elif self._freezes:
                self._freeze_when_idle(environment)
        except Exception as error:  # for whoever waits for the result
            invocation.fail(error)
        finally:
            self._turn.release()
            invocation.release()

    def _time_out(self, environment: Environment, invocation: Invocation) -> None:
        text = f"the handler was not done after {invocation.seconds:g} s"
        invocation.fail(InvocationTimedOut(text, log=environment.tail()))
        if self._function.workers is None:
            environment.kill()

    def _freeze_when_idle(self, environment: Environment) -> None:
        with suppress(InvocationError):  # it has ended after its answer: the next invocation starts another one
            environment.wait_until_ready(self._init_timeout, workers=1)
            environment.process.freeze()

    def _running(self) -> Environment | None:
        environment = self._environment
        return environment if environment is not None and environment.is_alive else None

    def _ready(self) -> Environment:
        with self._starting:
            environment = self._start()
            if not self._is_ready:
                environment.api.restore()
                self._try(environment, environment.wait_until_ready)
                self._is_ready = True
            return environment

    def _start(self) -> Environment:
        running = self._running()
        if running is not None:
            return running
        if self._is_closed:
            raise RuntimeError("the container is closed")
        if self._environment is not None:
            self._environment.kill()
        from serverless_pg_kit.testing.awslambda.runtime import Environment  # with it comes an HTTP server

        environment = Environment(self._function, self._log, self.tmp, refuses_extensions=self._refuses_extensions)
        self._environment, self._is_ready = environment, False
        self.starts += 1
        if self._function.snap_start:
            self._try(environment, environment.wait_for_snapshot)
        return environment

    def _try(self, environment: Environment, step: Callable[[float], None]) -> None:
        try:
            step(self._init_timeout)
        except BaseException:
            environment.kill()
            raise
