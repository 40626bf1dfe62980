"""Which transactions may be run again, decided without a server."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.pq import DiagnosticField

from serverless_pg_kit import AcquireTimeout, CommitUnknown, ConnectRejected, TooManyConnections, TransactionFailed
from serverless_pg_kit.decisions.replay import REPLAY_BACKOFF, may_replay, replay_delay


def pooler_error(severity: bytes) -> psycopg.Error:
    """Return an internal error, which some poolers send for everything."""
    return psycopg.errors.InternalError_("(EDBHANDLEREXITED)", info={DiagnosticField.SEVERITY: severity})


@pytest.mark.parametrize(
    "error",
    [
        pooler_error(b"FATAL"),
        psycopg.errors.ProtocolViolation("server conn crashed?"),
        psycopg.errors.SerializationFailure(),
        psycopg.errors.DeadlockDetected(),
        psycopg.errors.AdminShutdown(),
        psycopg.errors.IdleSessionTimeout(),
        psycopg.errors.ConnectionFailure(),
        psycopg.OperationalError("server closed the connection unexpectedly"),
        TransactionFailed("lost", lost=True),
    ],
)
def test_conflicts_and_losses_may_be_replayed(error: psycopg.Error) -> None:
    """Nothing of the transaction is kept, and another run may succeed."""
    assert may_replay(error)


@pytest.mark.parametrize(
    "error",
    [
        CommitUnknown(),
        pooler_error(b"ERROR"),
        TransactionFailed("swallowed"),
        AcquireTimeout(),
        TooManyConnections(),
        ConnectRejected(),
        psycopg.errors.UniqueViolation(),
        psycopg.errors.QueryCanceled(),
        psycopg.errors.IdleInTransactionSessionTimeout(),
        psycopg.ProgrammingError(),
        psycopg.InterfaceError(),
    ],
)
def test_other_failures_are_never_replayed(error: psycopg.Error) -> None:
    """It would fail again, or might be done twice."""
    assert not may_replay(error)


def test_delays_grow_and_end_with_the_attempts() -> None:
    """Each is below a growing ceiling; after the last attempt there is none."""
    conflict = psycopg.errors.SerializationFailure()
    delays = [replay_delay(conflict, attempts=run, limit=20, dice=0.999) for run in range(1, 21)]
    assert delays[-1] is None
    assert delays[:-1] == sorted(delay for delay in delays if delay is not None)
    assert delays[18] == pytest.approx(REPLAY_BACKOFF.cap, rel=0.01)
