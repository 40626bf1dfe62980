"""How generators that talk to a server say what they wait for, and what drives them when blocking is allowed.

psycopg's own protocol (``conn.wait``) wakes a generator at intervals that differ between releases, in some never. So
the kit's generators name the longest time they can wait, and a driver wakes them after it, to the millisecond.
"""

from __future__ import annotations

import math
import select
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

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
