"""What to do about room at the end of a request: keep the connection, end idle ones of the fleet, or give it up."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from serverless_pg_kit.decisions.census import Census

Strategy = Literal["lease", "minimum_idle_time", "ranked", "none"]
Decision = Literal["kept", "yielded", "closed"]

AGE_FLOOR = 0.05
"""Seconds a session must have been idle before anyone may end it, whatever the strategy says. It lies above the time
that a connect takes; without it a new connection was ended up to ten times in a row before its first request."""


class Reap(NamedTuple):
    """An order to end idle sessions of the fleet: idle for `min_idle_seconds` at least, `limit` of them at most.

    With an `interval` in seconds it is carried out by one engine of the fleet in each interval; 0: by everyone.
    """

    min_idle_seconds: float
    limit: int | None
    interval: float = 0.0


class CleanReport(NamedTuple):
    """What the end of a request did about room.

    `decision` tells of the engine's own connection: ``"kept"`` for the next request, ``"yielded"`` to make room, or
    ``"closed"`` because it could not be used again or there was none. `reason` says why in words. `census` is ``None``
    if none was due. `killed` are the pids of the sessions of this fleet that were ended.
    """

    decision: Decision
    reason: str
    census: Census | None = None
    killed: tuple[int, ...] = ()


UNTOUCHED = CleanReport("kept", "the request needed no connection")
"""The report of a request that acquired nothing."""

INTERRUPTED = CleanReport("closed", "interrupted")
"""The report of a request whose end has begun and is not done."""


def is_short(census: Census, conn_utilization: float) -> bool:
    """Tell whether more than `conn_utilization` of the scarcest limit is in use: then room has to be made."""
    return census.utilization > conn_utilization


def surplus(census: Census, conn_utilization: float) -> int:
    """Return how many sessions there are above `conn_utilization` of the scarcest limit; 0 if there is room."""
    return max(0, *(math.ceil(used - conn_utilization * limit - ROUNDING) for limit, used in census.limits))


def plan_reap(
    census: Census,
    *,
    conn_utilization: float,
    strategy: Strategy,
    min_idle_time: float,
    max_kills: int | None,
    interval: float,
) -> Reap | None:
    """Return whom `strategy` ends, or ``None`` for nobody: only when room is short.

    All take the longest idle first. ``ranked`` heeds only `AGE_FLOOR`. ``lease`` ends only the surplus, and once per
    `interval` seconds in the whole fleet: other sessions end by their leases.
    """
    if strategy == "none" or max_kills == 0 or not is_short(census, conn_utilization):
        return None
    if strategy == "lease":
        excess = surplus(census, conn_utilization)
        limit = excess if max_kills is None else min(excess, max_kills)
        return Reap(max(min_idle_time, AGE_FLOOR), limit, interval)
    return Reap(AGE_FLOOR if strategy == "ranked" else max(min_idle_time, AGE_FLOOR), max_kills)


def report_room(census: Census, conn_utilization: float, strategy: Strategy, killed: tuple[int, ...]) -> CleanReport:
    """Return the report on an engine that counted `census` and ended the sessions `killed`.

    It gives up its own connection when room is short and nobody could be ended, so that a slot comes free. With
    ``lease`` it does so only when there is no room at all: before that, leases run out.
    """
    share = f"{census.utilization:.0%} in use, {conn_utilization:.0%} wanted"
    if not is_short(census, conn_utilization):
        return CleanReport("kept", f"there is room: {share}", census)
    if killed:
        return CleanReport("kept", f"made room by ending {len(killed)} idle sessions: {share}", census, killed)
    if strategy == "lease" and census.room > 0:
        return CleanReport("kept", f"room is short, its lease is too: {share}", census)
    return CleanReport("yielded", f"room is short and nobody could be ended: {share}", census)


ROUNDING = 1e-9
"""What floating point may add to a product: 80 % of 20 slots are 16, not a hair less."""
