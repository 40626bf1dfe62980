"""The close exchange: the user's COMMIT, the way back to a clean session, the lease, and now and then a census."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from serverless_pg_kit.decisions.deadline import milliseconds, wanted_timeouts
from serverless_pg_kit.opening import NOTHING, standing_settings
from serverless_pg_kit.slots import Slot
from serverless_pg_kit.statements import Statements

PREPARE_AFTER = 5
"""Requests that a connection serves before the kit's own statements are prepared on it, like psycopg's
``prepare_threshold``: it pays only for what is used again and again."""


class Closing(NamedTuple):
    """A close exchange: its message (empty: nothing to send), how many commits it makes, and what it ends with.

    `prepares` are the settings of the release that it prepares, ``None`` if it prepares nothing; `timeout` is the
    time-out in milliseconds that it prepares an open for.
    """

    message: bytes
    commits: int = 0
    census: bool = False
    prepares: Mapping[str, int] | None = None
    timeout: int | None = None

    @property
    def tells(self) -> bool:
        """Whether there is something to take note of when it was done."""
        return self.census or self.prepares is not None or self.timeout is not None


def plan_close(
    slot: Slot,
    statements: Statements,
    *,
    commit: bool,
    reset: bool,
    lease: float | None,
    now: float,
    session: Mapping[str, str] = NOTHING,
    census: str = "",
) -> Closing:
    """Return the close exchange of a connection that goes on, with COMMIT or without.

    `lease` is in seconds, ``None`` sets none. `session` are the settings that every request starts from. `census` is
    the statement to end with; empty: none is due. `now` is
    wall-clock seconds.
    """
    extras = [
        *([statements.session(session, slot.pid)] if reset and slot.direct and session else []),
        *preparations(slot, statements, lease, reset=reset),
        *keep_election(slot, statements, now, reset=reset),
    ]
    return write_close(slot, statements, extras, commit=commit, reset=reset, lease=lease, census=census)


def write_close(
    slot: Slot,
    statements: Statements,
    extras: list[str],
    *,
    commit: bool,
    reset: bool,
    lease: float | None,
    census: str = "",
) -> Closing:
    """Return the close exchange of `plan_close`, with `extras` at the end of the way back."""
    ending = [statements.close_cursors(), statements.commit()] if commit else []
    if not slot.direct:
        return Closing("; ".join(ending).encode(), int(commit))
    cursors = [statements.close_cursors()] if reset and not commit else []
    tail = [*cursors, way_back(slot, statements, lease, reset=reset), *extras]
    if census:  # what follows COMMIT is one transaction unless bracketed: an error in the census would undo the reset
        tail = ["BEGIN", *tail, "COMMIT", census]
    message = "; ".join(part for part in (*ending, *tail) if part)
    prepares = lease_setting(lease) if wants_prepare(slot, reset=reset) else None
    return Closing(message.encode(), commit + bool(census), bool(census), prepares, slot.wanted_timeout)


def way_back(slot: Slot, statements: Statements, lease: float | None, *, reset: bool) -> str:
    """Return what undoes the request in the session, all of it or, without `reset`, what the open did; may be empty."""
    is_autocommit = slot.is_autocommit
    settings = lease_setting(lease)
    if reset:
        settings |= standing_settings(slot) if is_autocommit else {}
        return statements.reset(
            slot.pid, settings, keep_guard=is_autocommit, prepared=slot.prepared, other_user=slot.has_other_user
        )
    if lease == slot.lease and slot.prepared is None and "idle_session_timeout" not in slot.changed:
        settings = {}  # it still holds
    return statements.undo_open(slot.pid, slot.changed, settings, keep_guard=is_autocommit, prepared=slot.prepared)


def lease_setting(lease: float | None) -> dict[str, int]:
    """Return the setting that is a lease of so many seconds, none for ``None``."""
    return {} if lease is None else {"idle_session_timeout": milliseconds(lease)}


def preparations(slot: Slot, statements: Statements, lease: float | None, *, reset: bool) -> list[str]:
    """Return what prepares the kit's own statements, if it is time for that."""
    if not slot.direct:
        return []
    if wants_prepare(slot, reset=reset):
        return [statements.prepare(slot.pid, standing_settings(slot), lease_setting(lease), reset=reset)]
    if slot.wanted_timeout is None:
        return []
    timeouts = wanted_timeouts(slot.wanted_timeout / 1000, slot.server_version)
    settings, is_there = standing_settings(slot) | timeouts, slot.prepared_timeout is not None
    return [statements.prepare_timed(slot.pid, settings, again=is_there)]


def keep_election(slot: Slot, statements: Statements, now: float, *, reset: bool) -> list[str]:
    """Return what a cleaner says at the end of a request: its election holds until the interval is over (`now` is
    wall-clock seconds), but a `reset` releases the lock; without one it has to give it back."""
    if slot.elected is None:
        return []
    key, until = slot.elected
    if now < until:
        return [statements.stay_elected(key)] if reset else []
    slot.elected = None
    return [] if reset else [statements.resign(key)]


def will_prepare(slot: Slot) -> bool:
    """Tell whether the kit's statements are still to be prepared: never for users who want no prepared statements."""
    return slot.prepared is None and slot.may_prepare and slot.baseline.attributes["prepare_threshold"] is not None


def wants_prepare(slot: Slot, *, reset: bool) -> bool:
    """Tell whether the kit's statements should be prepared now, if anything will use them."""
    return slot.lent >= PREPARE_AFTER and will_prepare(slot) and (reset or not slot.is_autocommit)
