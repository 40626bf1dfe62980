"""How long a connection may stay idle before the server ends it by itself.

A lease is an ``idle_session_timeout``: it needs no killer and no privilege, never interrupts a command, and works when
every container is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from serverless_pg_kit.decisions.census import Census

TIGHT_LEASE = 10.0
"""Seconds: the longest lease above ``conn_utilization``. It shrinks with the room that is left."""

REFUSAL_MEMORY = 5.0
"""Seconds for which a refusal counts as pressure, unless a census since then saw ample room."""

NEW_SHARE = 0.25
"""Share of a fleet's sessions younger than a second above which its containers seem to take turns."""

LONGEST_TURN = 0.1
"""Seconds that a connection serves under pressure before it is another container's turn; more only where a connect
takes so long that `CONNECT_SHARE` asks for it. With turns of half a second, 200 containers that did not think took the
slots and the CPU of 500 that did (`benchmarks/soak.py`)."""

PATIENCE = 0.5
"""Seconds of waiting for a connection above which the turns grow shorter: the longer the line, the shorter the turn."""

CONNECT_SHARE = 0.25
"""Share of a turn that connecting may take: however long the line, a turn is not shorter than that allows. Where many
take turns most of that time is waiting; of the server's CPU a connect took 3 ms."""

CHEAPEST_CONNECT = 0.002
DEAREST_CONNECT = 0.03
"""Bounds in seconds of what a reconnect is taken to cost. A measured time can be longer because the client had to wait
for its CPU; a lease as long as that would only prolong the jam."""


KNOWN_INTERVALS = 2.0
"""For so many ``census_ttl`` a container that has reason to believe in pressure need not count anew to know of it."""


class Standing(NamedTuple):
    """What an engine knows when one of its requests ends. Times are seconds.

    `census` is the latest, ``None`` if there is none. `refused_ago` is the time since a server without free slots
    refused this process, infinity if it never did. `connect_seconds` is what a connect takes. `gaps` are the pauses
    before its latest requests, in any order. `age` is the time since the connection was opened, `waited` how long it
    had to be waited for.
    """

    census: Census | None
    refused_ago: float
    connect_seconds: float
    gaps: Sequence[float]
    age: float
    waited: float


class Lease(NamedTuple):
    """The decision: stay idle for `seconds` at most, 0 to close at once. `reason` says why in words."""

    seconds: float
    reason: str


def choose_lease(standing: Standing, *, longest: float, conn_utilization: float) -> Lease:
    """Return the lease of a connection that goes to sleep; never more than `longest` seconds.

    With room it is `longest`. Above `conn_utilization` it falls from `TIGHT_LEASE` in proportion to the room that is
    left, so that a fleet that freezes in this moment frees the reserve by itself, the sooner the less of it there is.

    Under pressure it is ski rental. Holding an idle slot costs others one second a second, giving it up costs one
    reconnect: whoever holds for just the time that a reconnect takes, and then lets go, never pays more than twice what
    a prophet would, and no rule that does not know the future guarantees less (Karlin, Manasse, Rudolph and Sleator,
    1988). What is known of the future is the container's own past: if most of its latest pauses were longer than it
    would hold, it closes at once. That costs one reconnect and no slot, which is the best there is for such pauses.

    A container that is called again and again would keep its slot for ever by that rule. So it has turns: when one is
    over, it closes whatever the past says. The longer it had to wait for its connection, the shorter its turn; but
    connecting never takes more than `CONNECT_SHARE` of it.
    """
    if longest <= 0:
        return Lease(0.0, "lease=0: no idle connection is kept")
    if is_pressed(standing, conn_utilization):
        seconds, reason = under_pressure(standing)
    else:
        seconds, reason = with_room(standing.census, longest, conn_utilization)
    return Lease(min(seconds, longest), reason)


def is_pressed(standing: Standing, conn_utilization: float) -> bool:
    """Tell whether somebody else may be waiting for this slot.

    Whoever was refused lately, or had to wait long for this connection, believes in pressure until a census sees ample
    room, half as much used as wanted: a moment's dip would otherwise be taken for peace by all at once. Others believe
    in it when half of the reserve above `conn_utilization` is gone, because sessions that are still logging in hold
    slots that no census sees; and above `conn_utilization` when many sessions are new, because then others take turns.
    """
    census = standing.census
    suspects = has_suspicion(standing.refused_ago, standing.waited)
    if census is None:
        return suspects
    if suspects:
        return not is_ample(census, conn_utilization)
    if census.room <= 0 or census.utilization > (1 + conn_utilization) / 2:
        return True
    return census.utilization > conn_utilization and census.fleet_new > census.fleet_used * NEW_SHARE


def has_suspicion(refused_ago: float, waited: float) -> bool:
    """Tell whether an engine refused `refused_ago` seconds before, or kept waiting for `waited`, believes in pressure
    until a census sees ample room."""
    return refused_ago < REFUSAL_MEMORY or waited > PATIENCE


def is_ample(census: Census, conn_utilization: float) -> bool:
    """Tell whether so little is in use, half as much as wanted, that there can be no pressure."""
    return census.room > 0 and census.utilization <= conn_utilization / 2


def may_skip_census(
    census: Census | None, counted_ago: float, refused_ago: float, waited: float, *, ttl: float, conn_utilization: float
) -> bool:
    """Tell whether a new connection, which was `waited` for, need not count although that is due.

    A census costs a new backend several times what it costs one that has been asked before, and as much as connecting
    itself: where a fleet takes turns, every container would pay that each time to learn what it knows. So one that has
    reason to believe in pressure goes by the latest `census`, taken `counted_ago` seconds before, for some times the
    `ttl`, unless that saw ample room.
    """
    if census is None or not 0 <= counted_ago < ttl * KNOWN_INTERVALS:
        return False
    return has_suspicion(refused_ago, waited) and not is_ample(census, conn_utilization)


def with_room(census: Census | None, longest: float, conn_utilization: float) -> tuple[float, str]:
    """Return seconds and reason of the lease while slots are free."""
    if census is None or census.utilization <= conn_utilization:
        return longest, "there is room"
    share = (1.0 - census.utilization) / (1.0 - conn_utilization)
    return TIGHT_LEASE * share, f"{census.utilization:.0%} in use, {conn_utilization:.0%} wanted"


def under_pressure(standing: Standing) -> tuple[float, str]:
    """Return seconds and reason of the lease while others wait: see `choose_lease` for the rule."""
    cost = min(max(standing.connect_seconds, CHEAPEST_CONNECT), DEAREST_CONNECT)
    turn = turn_seconds(cost, standing.waited)
    left = turn - standing.age
    if left <= 0:
        return 0.0, f"no room, and its turn of {turn:.2f} s is over"
    hold = min(cost, left)
    pause = usual_pause(standing.gaps)
    if pause > hold:
        return 0.0, f"no room, and its pauses ({pause:.3f} s) are longer than a reconnect takes"
    return hold, "no room: it stays idle no longer than a reconnect takes"


def usual_pause(gaps: Sequence[float]) -> float:
    """Return the pause in seconds that at least half of the `gaps` do not exceed; 0 without any."""
    return sorted(gaps)[(len(gaps) - 1) // 2] if gaps else 0.0


def turn_seconds(cost: float, waited: float) -> float:
    """Return how long a turn is where a connect costs `cost` seconds and this one was waited for `waited` seconds."""
    return max(cost / CONNECT_SHARE, LONGEST_TURN * PATIENCE / max(waited, PATIENCE))
