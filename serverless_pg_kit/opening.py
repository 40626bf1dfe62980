"""The open exchange: what a connection is sent where psycopg would send its BEGIN, and what its answer tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from serverless_pg_kit.decisions.deadline import (
    ORPHAN_CHECK,
    raised_lease,
    shorter_timeouts,
    wanted_timeouts,
)
from serverless_pg_kit.slots import Slot
from serverless_pg_kit.statements import Statements, TransactionMode

PING = ";"
"""An empty statement: its answer proves that the connection lives."""

CHAINING_VERSION = 120000
"""The first server that commits and begins anew in one statement."""

NOTHING: Mapping[str, str] = {}

LEASES_VERSION = 140000
"""The first server with ``idle_session_timeout`` and ``client_connection_check_interval``."""


class Opening(NamedTuple):
    """An open exchange: its message (empty: nothing needs to be sent) and whether it asks for a census."""

    message: bytes
    census: bool = False


def plan_open(
    slot: Slot,
    statements: Statements,
    mode: TransactionMode | None,
    remaining: float,
    *,
    reset: bool,
    ping: bool,
    session: Mapping[str, str] = NOTHING,
    census: str = "",
) -> Opening:
    """Return the open exchange for a request with `remaining` seconds; notes in `slot` which settings it changes.

    `mode` is that of the user's transaction, ``None`` if none is to begin. `session` are the settings that a new
    connection starts from, and `census` the statement to ask it for; empty: none is due. `reset` is the setting. With
    `ping` something is sent in any case. If the end has time-outs to take back, the request is no routine any more.
    """
    if slot.direct and reset and not slot.is_autocommit:
        return Opening(write_open(slot, statements, mode, request_settings(slot, remaining)))
    begin = "" if mode is None else statements.begin(mode)
    slot.changed = {} if slot.direct is False else request_settings(slot, remaining)
    if slot.direct is False or (slot.direct and slot.is_autocommit and not slot.changed):
        return Opening((begin or PING * ping).encode())
    if slot.changed.keys() & set(slot.timeout_names):
        slot.routine = None
    elif slot.direct and not slot.is_autocommit:
        return Opening(write_open(slot, statements, mode, slot.changed))
    if slot.direct and reset:
        return Opening(committed(statements.open(slot.pid, {**standing_settings(slot), **slot.changed}), begin, slot))
    first = statements.first_open(slot.pid, slot.changed, slot.server_version)
    basis = statements.session(session, slot.pid)
    return Opening(committed("; ".join(filter(None, (census, basis, first))), begin, slot), bool(census))


def write_open(
    slot: Slot, statements: Statements, mode: TransactionMode | None, wanted: Mapping[str, int | str]
) -> bytes:
    """Return the open exchange of a connection known to be direct, for a request that needs the settings `wanted`."""
    if slot.prepared is not None:
        message = statements.prepared_open(slot.pid, wanted)
    else:
        message = statements.open(slot.pid, {**standing_settings(slot), **wanted})
    return committed(message, "" if mode is None else statements.begin(mode), slot)


def request_settings(slot: Slot, remaining: float) -> dict[str, int]:
    """Return the settings, in milliseconds, that the session of `slot` lacks for a request with `remaining` seconds.

    The lease of an autocommit connection is never raised: nothing tells the server when its requests begin.
    """
    settings = shorter_timeouts(wanted_timeouts(remaining, slot.server_version), slot.own_timeouts)
    if slot.lease is not None and not slot.is_autocommit:
        raised = raised_lease(slot.lease, remaining)
        if raised is not None:
            settings["idle_session_timeout"] = raised
    return settings


def standing_settings(slot: Slot) -> dict[str, int]:
    """Return the settings, in milliseconds, that every request has, whatever its deadline."""
    has_check = slot.is_linux and slot.server_version >= LEASES_VERSION
    return {"client_connection_check_interval": ORPHAN_CHECK} if has_check else {}


def committed(message: str, begin: str, slot: Slot) -> bytes:
    """Return `message` in a small transaction of its own, followed by the user's `begin`, if any."""
    if begin == "BEGIN" and slot.server_version >= CHAINING_VERSION:
        return f"BEGIN; {message}; COMMIT AND CHAIN".encode()
    return (f"BEGIN; {message}; COMMIT; {begin}" if begin else f"BEGIN; {message}; COMMIT").encode()


def introduce(slot: Slot, row: list[str | None]) -> None:
    """Learn from the first row of `Statements.first_open` what the server tells of itself and of the session."""
    pid, linux, *timeouts = row
    slot.direct = pid == str(slot.pid)
    slot.is_linux = linux == "t"
    values = [int(value or 0) for value in timeouts[: len(slot.timeout_names)]]
    slot.own_timeouts = {name: value for name, value in zip(slot.timeout_names, values, strict=False) if value}
