"""How long something may still take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Deadline(NamedTuple):
    """A moment on a monotonic clock, in seconds, after which there is no point in going on.

    Made once at entry and passed down, so that every step works against the same moment. `now` is the clock.
    """

    at: float
    now: Callable[[], float]

    def remaining(self) -> float:
        """Return the seconds that are left: never negative, infinite without a limit."""
        return max(0.0, self.at - self.now())

    def within(self, seconds: float) -> Deadline:
        """Return the earlier of this deadline and one that lies `seconds` from now."""
        return Deadline(min(self.at, self.now() + seconds), self.now)


def deadline_after(seconds: float | None, now: Callable[[], float]) -> Deadline:
    """Return the deadline that lies `seconds` from now; ``None`` and infinity mean no limit."""
    return Deadline(math.inf if seconds is None else now() + seconds, now)


def request_budget(remaining_milliseconds: float | None, margin: float) -> float | None:
    """Return the seconds a request may use of an invocation's remaining time, or ``None`` if that is unknown.

    `margin` seconds are kept for the answer, but never more than half of what is left. A remaining time of 0 or
    less means unknown: that is what runtimes without a deadline report.
    """
    if remaining_milliseconds is None or remaining_milliseconds <= 0:
        return None
    seconds = remaining_milliseconds / 1000
    return max(seconds - margin, seconds / 2)


ATTEMPT_SECONDS = 5.0
"""Longest single attempt on one address, unless the user sets ``connect_timeout``: leaves time for another one."""

OPEN_SECONDS = 1.0
"""How long a connection that was idle may take to answer before it is taken for dead and replaced."""


def attempt_seconds(*, connect_timeout: int, max_wait: float, remaining: float, addresses_left: int) -> float:
    """Return the seconds that an attempt on the next of `addresses_left` addresses may take.

    `remaining` seconds of the acquisition are left; they are shared out, so that one silent address does not eat them
    all. A `max_wait` of 0 means one attempt, and that takes its time. A `connect_timeout` of 0 or less is none, as in
    libpq.
    """
    patience = connect_timeout if connect_timeout > 0 else ATTEMPT_SECONDS
    return min(patience, remaining / addresses_left) if max_wait else patience


def open_seconds(*, is_fresh: bool, remaining: float) -> float:
    """Return the seconds that the open exchange may take, of `remaining` (0: a single attempt, which takes its time).

    A connection that was idle gets little, so that enough is left to replace it; one that is fresh gets all.
    """
    if is_fresh:
        return remaining or ATTEMPT_SECONDS
    return min(OPEN_SECONDS, remaining / 2) if remaining > 0 else OPEN_SECONDS


ORPHAN_GRACE = 250
"""Milliseconds by which the outer time-outs exceed the statement's. With equal values PostgreSQL 17 ended a session
with FATAL 25P04 where the statement's plain 57014 was wanted."""

ORPHAN_CHECK = 500
"""Milliseconds between two looks of a running statement at whether its client still lives."""

LEASE_MARGIN = 1.0
"""Seconds by which a connection's lease exceeds what is left of the request that it serves."""

TIMEOUT_DIGITS = 7
MOST_ROUNDED = 7
"""Binary digits of a time-out that is kept prepared, at least, and that are rounded off it, at most."""

LONGEST_TIMEOUT = 2**31 - 1
"""Milliseconds: what PostgreSQL can hold."""


def timeout_names(server_version: int) -> tuple[str, ...]:
    """Return PostgreSQL's names of the time-outs of a request, in the order of `timeout_values`."""
    names = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
    return names if server_version >= 170000 else names[:2]


def timeout_values(remaining: float, server_version: int) -> tuple[int, ...]:
    """Return the time-outs, in milliseconds, of a request with `remaining` seconds left.

    A statement is cancelled at the deadline, so that the handler gets an error while it can still answer. A
    transaction that idles or goes on beyond it belongs to an invocation that is dead.
    """
    statement = min(max(1, int(remaining * 1000)), LONGEST_TIMEOUT)
    outer = min(statement + ORPHAN_GRACE, LONGEST_TIMEOUT)
    return (statement, outer, outer) if server_version >= 170000 else (statement, outer)


def rounded_timeout(milliseconds: int) -> int:
    """Return `milliseconds` rounded down, by less than 1.6 % and by less than `ORPHAN_GRACE`.

    So requests that have about the same time say the same, and the server need not be told each time. The outer
    time-outs exceed this one by `ORPHAN_GRACE`: no session is ended before its request's deadline.
    """
    surplus = surplus_digits(milliseconds)
    return milliseconds >> surplus << surplus


def rounded_span(timeout: int) -> tuple[float, float]:
    """Return from how many seconds on, and below how many, `rounded_timeout` is this `timeout` in milliseconds."""
    return timeout / 1000, (timeout + (1 << surplus_digits(timeout))) / 1000


def surplus_digits(milliseconds: int) -> int:
    """Return how many binary digits `rounded_timeout` makes 0."""
    return min(max(0, milliseconds.bit_length() - TIMEOUT_DIGITS), MOST_ROUNDED)


def wanted_timeouts(remaining: float, server_version: int) -> dict[str, int]:
    """Return `timeout_values` by name; none without a deadline (infinite)."""
    if remaining == math.inf:
        return {}
    return dict(zip(timeout_names(server_version), timeout_values(remaining, server_version), strict=True))


def shorter_timeouts(wanted: Mapping[str, int], own: Mapping[str, int]) -> dict[str, int]:
    """Return those of the `wanted` time-outs that are shorter than the session's `own` (0 or absent: none)."""
    return {name: value for name, value in wanted.items() if not 0 < own.get(name, 0) <= value}


def raised_lease(lease: float, remaining: float) -> int | None:
    """Return the ``idle_session_timeout`` in milliseconds that a request needs in place of its connection's `lease`.

    A pause between two of its transactions must not end it, so the lease reaches beyond the `remaining` seconds; 0
    switches it off where there is no deadline. ``None``: the lease of that many seconds is long enough.
    """
    if remaining == math.inf:
        return 0
    return None if lease >= remaining + LEASE_MARGIN else milliseconds(remaining + LEASE_MARGIN)


def milliseconds(seconds: float) -> int:
    """Return `seconds` as PostgreSQL takes a time-out: at least 1, for 0 would switch it off."""
    return min(max(1, int(seconds * 1000)), LONGEST_TIMEOUT)
