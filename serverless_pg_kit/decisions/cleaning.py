"""What to do about room at the end of a request: keep the connection, end idle ones of the fleet, or give it up."""

from __future__ import annotations

from typing import Literal, NamedTuple

from serverless_pg_kit.decisions.census import Census

Strategy = Literal["minimum_idle_time", "ranked", "none"]
Decision = Literal["kept", "yielded", "closed"]

AGE_FLOOR = 0.05
"""Seconds a session must have been idle before anyone may end it, whatever the strategy says. It lies above the time
that a connect takes; without it a new connection was ended up to ten times in a row before its first request."""


class Reap(NamedTuple):
    """An order to end idle sessions of the fleet: idle for `min_idle_seconds` at least, `limit` of them at most."""

    min_idle_seconds: float
    limit: int | None


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


def is_short(census: Census, conn_utilization: float) -> bool:
    """Tell whether more than `conn_utilization` of the scarcest limit is in use: then room has to be made."""
    return census.utilization > conn_utilization


def plan_reap(
    census: Census,
    *,
    conn_utilization: float,
    strategy: Strategy,
    min_idle_time: float,
    max_kills: int | None,
) -> Reap | None:
    """Return whom `strategy` ends, or ``None`` for nobody: only when room is short.

    ``minimum_idle_time`` and ``ranked`` both take the longest idle first; the second heeds only `AGE_FLOOR`.
    """
    if strategy == "none" or max_kills == 0 or not is_short(census, conn_utilization):
        return None
    return Reap(AGE_FLOOR if strategy == "ranked" else max(min_idle_time, AGE_FLOOR), max_kills)


def report_room(census: Census, conn_utilization: float, killed: tuple[int, ...]) -> CleanReport:
    """Return the report on an engine that counted `census` and ended the sessions `killed`.

    It gives up its own connection when room is short and nobody could be ended, so that a slot comes free.
    """
    share = f"{census.utilization:.0%} in use, {conn_utilization:.0%} wanted"
    if not is_short(census, conn_utilization):
        return CleanReport("kept", f"there is room: {share}", census)
    if killed:
        return CleanReport("kept", f"made room by ending {len(killed)} idle sessions: {share}", census, killed)
    return CleanReport("yielded", f"room is short and nobody could be ended: {share}", census)
