"""When to try again to connect.

A refused attempt costs the server a fork, so five hundred containers that ask every 50 ms starve the ones that work;
but a lone container in front of a server that is full for 100 ms should not wait a second. Hence: start small, grow
fast, jitter fully (each delay is uniform between zero and a growing ceiling).
"""

from __future__ import annotations

from typing import NamedTuple

from serverless_pg_kit.decisions.classify import Failure, FailureKind

GROWTH = 3.0
"""Factor by which the ceiling of the delay grows from attempt to attempt."""

UNKNOWN_DELAY = 1.0
"""Seconds between attempts after a failure nobody understands: it may be a login that fails for good, and a tighter
loop could lock an account."""

LAST_CHANCE = 0.05
LONGEST_CHANCE = 0.5
"""Seconds kept for the last attempt, the one made just before the deadline: as long as the slowest so far, within these
bounds. One that hung for seconds must not cost as many of the time that is left."""


class Backoff(NamedTuple):
    """The limits of retrying: `base` and `cap` in seconds, `max_retries` a count or ``None`` for no limit."""

    base: float
    cap: float
    max_retries: int | None = None

    def ceiling(self, retry: int) -> float:
        """Return the longest delay, in seconds, before retry number `retry` (the first is 1)."""
        exponent = min(retry - 1, 64)  # beyond this the cap holds anyway, and floats would overflow
        return min(self.cap, self.base * GROWTH**exponent)


def next_delay(
    backoff: Backoff,
    failure: Failure,
    *,
    attempts: int,
    remaining: float,
    attempt_seconds: float,
    dice: float,
) -> float | None:
    """Return the seconds to wait before the next attempt, or ``None`` to give up.

    `attempts` have been made so far, the slowest of them took `attempt_seconds`, and `remaining` seconds are left.
    `dice` is a random number in [0, 1). A delay that would end too late for another attempt is shortened, so that the
    last attempt is made before the deadline and not after it.
    """
    if not may_retry(backoff, failure, attempts):
        return None
    latest = remaining - min(max(attempt_seconds, LAST_CHANCE), LONGEST_CHANCE)
    if latest <= 0:
        return None
    if failure.kind is FailureKind.UNKNOWN:
        return UNKNOWN_DELAY if latest >= UNKNOWN_DELAY else None
    return min(dice * backoff.ceiling(attempts), latest)


def may_retry(backoff: Backoff, failure: Failure, attempts: int) -> bool:
    """Tell whether `failure` is worth another attempt after `attempts` of them, time permitting."""
    limits = [limit for limit in (backoff.max_retries, failure.max_retries) if limit is not None]
    return failure.kind.retryable and all(attempts <= limit for limit in limits)
