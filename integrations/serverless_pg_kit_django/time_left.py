"""The deadline of what goes on in this context: a request, or a handler outside HTTP."""

from __future__ import annotations

import time
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("serverless_pg_kit_django.deadline", default=None)


def time_left() -> float | None:
    """Return the seconds until the deadline, 0 if it is over; ``None`` without one."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def set_time_left(seconds: float | None) -> None:
    """Let the deadline be `seconds` from now; ``None``: there is none. It holds for connections acquired later."""
    _deadline.set(None if seconds is None else time.monotonic() + seconds)
