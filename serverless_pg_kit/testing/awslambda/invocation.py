"""One event on its way through a function, and what became of it."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any


class Invocation:
    """One invocation, under way or over. `id` is the request's; `seconds` how long it may take, once it has begun."""

    def __init__(self, body: bytes, seconds: float) -> None:
        self.id: str = str(uuid.uuid4())
        self.body: bytes = body
        self.seconds: float = seconds
        self.deadline: float | None = None
        """When its time is up, in seconds since the epoch; ``None`` until the function has taken it."""
        self._lock = threading.Lock()
        self._begun = threading.Event()
        self._over = threading.Event()
        self._freed = threading.Event()
        self._result: Any = None
        self._error: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is a result, or an error instead of it."""
        return self._over.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the handler's result, at most `timeout` seconds, and return it, decoded from JSON.

        Raises the `InvocationError` that came instead, ``RuntimeError`` if the container was closed before it began, or
        ``TimeoutError`` if it is not over by then.
        """
        if not self._freed.wait(timeout):
            raise TimeoutError(f"the invocation is not over after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._result

    def begin(self) -> float:
        """Note that the function takes it now, and return its deadline, in seconds since the epoch."""
        self.deadline = time.time() + self.seconds
        self._begun.set()
        return self.deadline

    def wait_until_begun(self, timeout: float) -> bool:
        """Tell whether the function takes it, or loses it, within `timeout` seconds."""
        return self._begun.wait(timeout)

    def wait(self) -> bool:
        """Tell whether it is over before its time is up."""
        left = self.seconds if self.deadline is None else self.deadline - time.time()
        return self._over.wait(max(0.0, left))

    def succeed(self, result: Any) -> None:
        """Be over with `result`, unless it is over already."""
        self._end(result, None)

    def fail(self, error: Exception) -> None:
        """Be over with `error`, unless it is over already."""
        self._end(None, error)

    def release(self) -> None:
        """Let those go on who wait for the result: the container is ready for the next one."""
        self._freed.set()

    def _end(self, result: Any, error: Exception | None) -> None:
        with self._lock:
            if not self._over.is_set():
                self._result, self._error = result, error
                self._over.set()
                self._begun.set()
