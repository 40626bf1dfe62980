"""How a request ends, and what is known about its COMMIT."""

from __future__ import annotations

from collections.abc import Container
from enum import Enum
from typing import NamedTuple

from psycopg.pq import TransactionStatus

SERVER_ERRORS = range(500, 1000)
"""The statuses of answers that roll back, unless somebody says otherwise."""


def check_statuses(rollback_on: object) -> None:
    """Raise ``TypeError`` for a `rollback_on` in which no status can be looked for."""
    if not isinstance(rollback_on, Container) or isinstance(rollback_on, (str, bytes)):
        raise TypeError(
            f"rollback_on={rollback_on!r} is not allowed: it has to be a container of statuses, as range(400, 600) or"
            " {409, 500} are"
        )


class Ending(Enum):
    """The ways to end a request: there is `NOTHING` to commit; `COMMIT`; `ROLLBACK`; `FAILED` (roll back and tell the
    caller); `DISCARD` a connection that cannot go on; `LOST` or `UNFINISHED` (discard it and tell the caller)."""

    NOTHING = "nothing"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    FAILED = "failed"
    DISCARD = "discard"
    LOST = "lost"
    UNFINISHED = "unfinished"


def choose_ending(
    status: int,
    wants_commit: bool,
    *,
    spoiled: bool,
    tells_failure: bool,
    autocommit: bool,
    closed_by_user: bool,
) -> Ending:
    """Return how to end a request whose connection is in transaction state `status`
    (``psycopg.pq.TransactionStatus``).

    `wants_commit` is False after an exception or `Scope.fail()`. `spoiled` means that a request which joined this one
    failed and its exception was caught: a commit would keep half of its work. `tells_failure` says that the result
    itself admits a failed transaction (a 4xx answer, or the manual form, whose caller saw the database error), so that
    a silent rollback misleads nobody; of work that was left unfinished it knows nothing.
    """
    if status == TransactionStatus.INTRANS and not spoiled:
        return Ending.COMMIT if wants_commit else Ending.ROLLBACK
    if status == TransactionStatus.UNKNOWN:
        believes = wants_commit and not tells_failure
        return Ending.LOST if believes and not (autocommit or closed_by_user) else Ending.DISCARD
    if status == TransactionStatus.ACTIVE:  # something was left open
        return Ending.UNFINISHED if wants_commit else Ending.DISCARD
    if status == TransactionStatus.INERROR or (spoiled and not autocommit):
        return Ending.FAILED if wants_commit and not tells_failure else Ending.ROLLBACK
    if status == TransactionStatus.IDLE:
        return Ending.NOTHING
    return Ending.COMMIT if wants_commit else Ending.ROLLBACK


def rollback_reason(status: int, *, spoiled: bool) -> str:
    """Return in words why a transaction in state `status` is rolled back."""
    if status == TransactionStatus.INERROR:
        return "the transaction had failed"
    return "a request inside this one failed" if spoiled else "the request failed"


class Outcome(Enum):
    """What is known about a COMMIT that was sent."""

    COMMITTED = "committed"
    FAILED = "failed"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


class CommitAnswer(NamedTuple):
    """The server's answer to COMMIT itself: its command tag, or SQLSTATE and severity of its error, or nothing."""

    tag: str | None = None
    code: str | None = None
    severity: str | None = None


POOLERS_LOSS = ("XX000", "FATAL")


def commit_outcome(answer: CommitAnswer | None) -> Outcome:
    """Return what `answer` (``None``: there was none) says about the transaction.

    The tag COMMIT means committed, whatever follows. ROLLBACK without an error means that the transaction had failed
    before. An error says that it was not committed, unless it is about the connection (class 08, or no SQLSTATE), or
    the server panicked: what it had written may be found when it recovers. A pooler may report the loss of its server
    as a FATAL internal error.
    """
    if answer is None:
        return Outcome.UNKNOWN
    if answer.tag is not None:
        return Outcome.COMMITTED if answer.tag == "COMMIT" else Outcome.FAILED
    is_loss = answer.code is None or answer.code.startswith("08") or (answer.code, answer.severity) == POOLERS_LOSS
    return Outcome.UNKNOWN if is_loss or answer.severity == "PANIC" else Outcome.REJECTED
