"""Whether a transaction that failed may be run again from its begin, and when."""

from __future__ import annotations

from psycopg import Error, OperationalError

from serverless_pg_kit.decisions.backoff import Backoff
from serverless_pg_kit.decisions.role import READ_ONLY
from serverless_pg_kit.errors import ServerlessPgError, TransactionFailed

CONFLICTS = ("40001", "40P01")
"""SQLSTATEs with which the server asks for another run: serialization failure, deadlock."""

LOSSES = ("57P01", "57P02", "57P03", "57P05")
"""SQLSTATEs with which a server ends a session that did nothing wrong, because it or somebody wanted to stop."""

FATAL = ("FATAL", "PANIC")
"""Severities after which there is no session any more."""

POOLERS_CODE = "XX000"
"""SQLSTATE of an internal error, which some poolers send for everything: also for the loss of their own server."""

REPLAY_BACKOFF = Backoff(0.01, 1.0)
"""Two that met in a conflict meet again if they begin again at the same time."""


def may_replay(error: Error, *, is_closed: bool = False) -> bool:
    """Tell whether the whole of a transaction may be run again after `error` ended it.

    Yes if the server asks for that, or if the connection was lost before COMMIT was sent, for then nothing is kept; or
    if a write was refused on a connection that `is_closed` for that reason: another one may find the primary. No after
    `CommitUnknown`, which may have been committed, nor after the kit's other errors: acquiring has been tried often
    enough.
    """
    if isinstance(error, TransactionFailed):
        return error.lost
    if isinstance(error, ServerlessPgError):
        return False
    return error.sqlstate in CONFLICTS or is_loss(error) or (is_closed and error.sqlstate == READ_ONLY)


def is_loss(error: Error) -> bool:
    """Tell whether `error` says that the connection was lost."""
    code = error.sqlstate
    if code == POOLERS_CODE:
        return is_fatal(error)
    return isinstance(error, OperationalError) and (code is None or code.startswith("08") or code in LOSSES)


def is_fatal(error: Error) -> bool:
    """Tell whether whoever sent `error` has ended the session with it."""
    return (error.diag.severity_nonlocalized or error.diag.severity) in FATAL  # PgBouncer sends the latter only


def replay_delay(error: Error, *, attempts: int, limit: int, dice: float, is_closed: bool = False) -> float | None:
    """Return the seconds before the next run of a transaction, ``None`` if there is none.

    `attempts` runs have been made of at most `limit`; `dice` is a random number in [0, 1). `is_closed` tells that the
    connection was closed at the end of the latest.
    """
    if attempts >= limit or not may_replay(error, is_closed=is_closed):
        return None
    return dice * REPLAY_BACKOFF.ceiling(attempts)
