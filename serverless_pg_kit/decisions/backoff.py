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

QUICK_CONNECT = 0.25
"""Seconds that a connect may take without telling of a line: the server may be far away, or busy for a moment."""

PACE = 3.0
"""How many times as long as its latest connect took a container stays away after giving its connection up for others:
then each has an attempt under way for a quarter of the time that it is without a connection."""

LONGEST_PAUSE = 2.0
"""Seconds: the longest that a container stays away."""

PAUSE_SHARE = 0.25
"""Share of the time that a request has left for its connection that may go by before the first attempt."""

PACE_MEMORY = 10.0
"""Seconds after which what a connect took tells nothing of the next one."""

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


def first_delay(connect_seconds: float, connected_ago: float, *, remaining: float, dice: float) -> float:
    """Return the seconds to wait before the first attempt of a container that gave its last connection up for others.

    Its latest connect took `connect_seconds`, `connected_ago` seconds before; `remaining` seconds are left. `dice` is a
    random number in [0, 1).

    Where many take turns, it is connecting that the server is short of. All that try at the same time wait in line for
    it: in the server's listen queue, and those for whom that is too short wait for TCP to ask again, after 1, 2 and 4
    seconds, whoever came first. So a container that stood in line lets others have it to themselves for a while; the
    line stays short, and nobody waits there for very long. A quick connect had no line before it: then there is no
    pause, nor is there one for long.
    """
    if not 0 <= connected_ago < PACE_MEMORY:
        return 0.0
    queued = max(0.0, connect_seconds - QUICK_CONNECT)
    return min(queued * PACE * (0.5 + dice), LONGEST_PAUSE, max(0.0, remaining) * PAUSE_SHARE)


def may_retry(backoff: Backoff, failure: Failure, attempts: int) -> bool:
    """Tell whether `failure` is worth another attempt after `attempts` of them, time permitting."""
    limits = [limit for limit in (backoff.max_retries, failure.max_retries) if limit is not None]
    return failure.kind.retryable and all(attempts <= limit for limit in limits)
