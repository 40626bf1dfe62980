"""A container: a thread whose user thinks, asks and waits for the answer; and what it needs around it."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fleet.contestants import Client
from fleet.figures import Request
from serverless_pg_kit.simulator.measure import reason

STACK = 512 * 1024  # bytes: a container needs little, and there are hundreds


class Shift:
    """When all containers of a process begin to ask, and when they stop."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.over = threading.Event()


class Container(threading.Thread):
    """A container: during its `shift` its user thinks, asks, waits for the answer, and so on."""

    def __init__(self, client: Client, pauses: Iterator[float], query: bytes, shift: Shift) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.requests: list[Request] = []
        self._pauses = pauses
        self._query = query
        self._shift = shift

    def run(self) -> None:
        """Ask until the shift is over; then close what is open."""
        self._shift.begun.wait()
        for pause in self._pauses:
            if self._shift.over.wait(pause) if pause else self._shift.over.is_set():
                break
            self.requests.append(self._ask())
        self.client.close()

    def _ask(self) -> Request:
        began, problem = time.monotonic(), ""
        try:
            self.client.serve(self._query)
        except Exception as error:
            problem = f"{type(error).__name__}: {reason(str(error))}"
        return Request(began, time.monotonic(), problem)


class Warnings(logging.Handler):
    """Counts what the kit warns of, by the first line of its text, instead of printing it hundreds of times."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count a warning."""
        first_line = record.getMessage().partition(r"\n")[0]  # of a repr, where line ends are escaped
        self.texts[first_line] += 1


@contextmanager
def listening(handler: logging.Handler) -> Iterator[None]:
    """Let `handler` hear the kit's log during the block."""
    logger = logging.getLogger("serverless_pg_kit")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def small_stacks() -> Iterator[None]:
    """Give threads that start in the block a small stack."""
    before = threading.stack_size(STACK)
    try:
        yield
    finally:
        threading.stack_size(before)
