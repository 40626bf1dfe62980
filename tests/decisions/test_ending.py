from __future__ import annotations

import pytest
from psycopg.pq import TransactionStatus as Status

from serverless_pg_kit.decisions.ending import (
    CommitAnswer,
    Ending,
    Outcome,
    choose_ending,
    commit_outcome,
    rollback_reason,
)

WELL = {
    "wants_commit": True,
    "spoiled": False,
    "tells_failure": False,
    "autocommit": False,
    "closed_by_user": False,
}


@pytest.mark.parametrize(
    ("status", "circumstances", "ending"),
    [
        (Status.INTRANS, {}, Ending.COMMIT),
        (Status.INTRANS, {"wants_commit": False}, Ending.ROLLBACK),
        (Status.INTRANS, {"tells_failure": True}, Ending.COMMIT),
        (Status.INTRANS, {"spoiled": True}, Ending.FAILED),
        (Status.INTRANS, {"spoiled": True, "wants_commit": False}, Ending.ROLLBACK),
        (Status.INERROR, {}, Ending.FAILED),
        (Status.INERROR, {"tells_failure": True}, Ending.ROLLBACK),
        (Status.INERROR, {"wants_commit": False}, Ending.ROLLBACK),
        (Status.IDLE, {}, Ending.NOTHING),
        (Status.IDLE, {"wants_commit": False}, Ending.NOTHING),
        (Status.ACTIVE, {}, Ending.UNFINISHED),
        (Status.ACTIVE, {"wants_commit": False}, Ending.DISCARD),
        (Status.ACTIVE, {"tells_failure": True}, Ending.UNFINISHED),
        (Status.ACTIVE, {"tells_failure": True, "wants_commit": False}, Ending.DISCARD),
        (Status.ACTIVE, {"autocommit": True}, Ending.UNFINISHED),
        (Status.INTRANS, {"spoiled": True, "tells_failure": True}, Ending.ROLLBACK),
        (Status.INTRANS, {"spoiled": True, "autocommit": True}, Ending.COMMIT),
        (Status.INERROR, {"spoiled": True, "autocommit": True}, Ending.FAILED),
        (Status.IDLE, {"spoiled": True, "autocommit": True}, Ending.NOTHING),
        (Status.UNKNOWN, {}, Ending.LOST),
        (Status.UNKNOWN, {"wants_commit": False}, Ending.DISCARD),
        (Status.UNKNOWN, {"closed_by_user": True}, Ending.DISCARD),
        (Status.UNKNOWN, {"autocommit": True}, Ending.DISCARD),
        (Status.UNKNOWN, {"tells_failure": True}, Ending.DISCARD),
    ],
)
def test_ending(status: Status, circumstances: dict[str, bool], ending: Ending) -> None:
    """Nobody is left believing in a commit that did not happen, and nobody hears of one that was not wanted."""
    assert choose_ending(status, **WELL | circumstances) is ending


@pytest.mark.parametrize(
    ("status", "spoiled", "reason"),
    [
        (Status.INERROR, False, "the transaction had failed"),
        (Status.INERROR, True, "the transaction had failed"),
        (Status.INTRANS, True, "a request inside this one failed"),
        (Status.INTRANS, False, "the request failed"),
    ],
)
def test_rollback_reason(status: Status, spoiled: bool, reason: str) -> None:
    """The event of a rollback names the nearest cause: the transaction's failure, one inside, or its own."""
    assert rollback_reason(status, spoiled=spoiled) == reason


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (CommitAnswer(tag="COMMIT"), Outcome.COMMITTED),
        (CommitAnswer(tag="ROLLBACK"), Outcome.FAILED),
        (CommitAnswer(code="40001"), Outcome.REJECTED),
        (CommitAnswer(code="23503"), Outcome.REJECTED),
        (CommitAnswer(code="57P01", severity="FATAL"), Outcome.REJECTED),
        (CommitAnswer(code="XX000", severity="ERROR"), Outcome.REJECTED),
        (CommitAnswer(code="XX000", severity="FATAL"), Outcome.UNKNOWN),  # a pooler that lost its server
        (CommitAnswer(code="53100", severity="PANIC"), Outcome.UNKNOWN),
        (CommitAnswer(code="08006"), Outcome.UNKNOWN),
        (CommitAnswer(), Outcome.UNKNOWN),
        (None, Outcome.UNKNOWN),
    ],
)
def test_commit_outcome(answer: CommitAnswer | None, outcome: Outcome) -> None:
    """The outcome of COMMIT is read from its own answer, and unknown only without one."""
    assert commit_outcome(answer) is outcome
