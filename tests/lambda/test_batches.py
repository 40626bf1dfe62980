"""Batches: a message that fails, in whatever way, takes nothing of the others with it."""

from __future__ import annotations

from typing import Any

import pytest
from lambda_events import event
from support import entries, sessions

BATCH = """
import json

failing = []

@with_db(engine)
def batch_handler(event, context):
    if event.get("touch"):
        engine.connection.execute("insert into ledger values (100)")
    failed = []
    for record in event["Records"]:
        try:
            with engine.request(join=False) as conn:
                entry = json.loads(record["body"])["entry"]
                conn.execute("insert into ledger values (%s)", [entry])
                if entry == event["bad"]:
                    exec(event["act"])
        except Exception as error:
            failed.append(type(error).__name__)
    return failed
"""


FAILURES = {
    "raise LookupError('mine')": "LookupError",
    "conn.execute('select 1/0')": "DivisionByZero",
    "try: conn.execute('select 1/0')\nexcept Exception: pass": "TransactionFailed",
    "conn.execute('insert into ledger values (2)')": "UniqueViolation",
    "conn.execute('select pg_terminate_backend(pg_backend_pid())')": "AdminShutdown or OperationalError",
    "conn.execute('set role postgres')": "InsufficientPrivilege",
    "conn.execute('set local statement_timeout = 1; select pg_sleep(10)')": "QueryCanceled",
}


@pytest.mark.parametrize("touch", [False, True])
def test_failing_message(make: Any, superuser: Any, fleet: str, ledger: str, touch: bool) -> None:
    """Four of five messages are committed, whatever happens to the other one; and so is the handler's own work."""
    container = make("batch_handler", code=BATCH)
    for act, error in FAILURES.items():
        batch = {**event("sqs"), "bad": 2, "act": act, "touch": touch}
        [told] = container.invoke(batch)
        assert told in error.split(" or ")
        assert entries(superuser) == [1, 3, 4, 5, *([100] if touch else [])]
        superuser.execute("truncate ledger")
    assert len(sessions(superuser, fleet)) == (2 if touch else 1)


def test_end_of_the_time(make: Any, superuser: Any, ledger: str) -> None:
    """When the invocation's time is used up, the rest of the batch fails at once and may come again."""
    container = make("batch_handler", code=BATCH, environment={"SERVERLESS_PG_DEADLINE_MARGIN": "1.5"})
    container.start()
    batch = {**event("sqs"), "bad": 2, "act": "conn.execute('select pg_sleep(60)')"}

    assert container.invoke(batch, timeout=3.0) == ["QueryCanceled", *["AcquireTimeout"] * 3]
    assert entries(superuser) == [1]
