"""How generators that talk to a server say what they wait for, and what drives them when blocking is allowed.

psycopg's own protocol (``conn.wait``) wakes a generator at intervals that differ between releases, in some never. So
the kit's generators name the longest time they can wait, and a driver wakes them after it, to the millisecond.
"""

from __future__ import annotations

import math
import select
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from serverless_pg_kit.clock import Clock
from serverless_pg_kit.errors import SettingsError

T = TypeVar("T")

Lock: type[Any] = type(threading.RLock())
"""Keeps other threads out, but not the signal handlers of its own."""

FAILURES = Exception
"""What the end of a request may fail with and still has to be told the outcome of."""

Wanted = tuple[int, int, float]
"""What a generator waits for: the descriptor, the poll events, and the seconds it may take (infinite: no limit)."""

LONGEST = (2**31 - 1) / 1000
"""Seconds that poll() can wait; more is no limit."""

Steps = Generator[Wanted, bool, T]
"""A generator that yields what it waits for, is told whether it happened in time, and returns a `T`."""


def drive(steps: Steps[T]) -> T:
    """Run `steps` to their end, blocking, and return their result. Raises what they raise."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(is_ready(*wanted))
    except StopIteration as done:
        result: T = done.value
        return result


def is_ready(descriptor: int, events: int, seconds: float) -> bool:
    """Wait until one of `events` happens on `descriptor`, or `seconds` have passed; tell which."""
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(max(0, math.ceil(seconds * 1000)) if seconds <= LONGEST else None))


def elsewhere(seconds: float, function: Callable[..., T], *args: Any) -> T | None:
    """Return what ``function(*args)`` returns: whoever may block calls it here. Nothing bounds it to `seconds`."""
    return function(*args)


def asked(seconds: float, name: str, function: Callable[[], object]) -> tuple[object] | None:
    """Return what ``function()`` returns, in a tuple: the callable that is the setting `name`. Nothing bounds it to
    `seconds`. Raises `SettingsError` for an async one, and what it raises."""
    return (completed(function(), name),)


def pause(clock: Clock, seconds: float) -> None:
    """Sleep for `seconds` by the `clock`."""
    clock.sleep(seconds)


class Bell:
    """Wakes one thread. It may be rung from any other."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ring(self) -> bool:
        """Wake the thread that waits, or will wait. There is always one."""
        self._event.set()
        return True

    def wait(self, seconds: float) -> bool:
        """Wait until the bell is rung, at most for `seconds`; tell whether it was."""
        return self._event.wait(min(seconds, threading.TIMEOUT_MAX))


def completed(result: object, name: str = "configure") -> object:
    """Return `result`. Raises `SettingsError` if that is only a coroutine of the setting `name`: nobody would run it
    here."""
    if isinstance(result, Coroutine):
        result.close()
        raise SettingsError(f"{name} is an async function: it needs AsyncEngine")
    return result
