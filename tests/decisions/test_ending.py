from __future__ import annotations

import pytest
from psycopg.pq import TransactionStatus as Status

from serverless_pg_kit.decisions.ending import CommitAnswer, Ending, Outcome, choose_ending, commit_outcome

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
        (Status.ACTIVE, {}, Ending.LOST),
        (Status.ACTIVE, {"wants_commit": False}, Ending.DISCARD),
        (Status.UNKNOWN, {}, Ending.LOST),
        (Status.UNKNOWN, {"wants_commit": False}, Ending.DISCARD),
        (Status.UNKNOWN, {"closed_by_user": True}, Ending.DISCARD),
        (Status.UNKNOWN, {"autocommit": True}, Ending.DISCARD),
    ],
)
def test_ending(status: Status, circumstances: dict[str, bool], ending: Ending) -> None:
    """Nobody is left believing in a commit that did not happen, and nobody hears of one that was not wanted."""
    assert choose_ending(status, **WELL | circumstances) is ending


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (CommitAnswer(tag="COMMIT"), Outcome.COMMITTED),
        (CommitAnswer(tag="ROLLBACK"), Outcome.FAILED),
        (CommitAnswer(code="40001"), Outcome.REJECTED),
        (CommitAnswer(code="23503"), Outcome.REJECTED),
        (CommitAnswer(code="57P01"), Outcome.REJECTED),
        (CommitAnswer(code="08006"), Outcome.UNKNOWN),
        (CommitAnswer(), Outcome.UNKNOWN),
        (None, Outcome.UNKNOWN),
    ],
)
def test_commit_outcome(answer: CommitAnswer | None, outcome: Outcome) -> None:
    """The outcome of COMMIT is read from its own answer, and unknown only without one."""
    assert commit_outcome(answer) is outcome
