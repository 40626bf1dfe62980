"""Code outside HTTP: handlers and blocks that use the ORM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from django.db import DataError, IntegrityError, OperationalError, connection, transaction
from django_site.models import Entry
from django_site.views import backend
from support import kill

from serverless_pg_kit import TransactionFailed
from serverless_pg_kit_django import db_request, engine_for, with_db

Numbers = Callable[[], list[int]]


class Invocation:
    """A Lambda context."""

    def get_remaining_time_in_millis(self) -> int:
        """Return what is left of the invocation."""
        return 1000


def test_with_db_commits(numbers: Numbers) -> None:
    """ORM and injected connection share one transaction, which commits; ``on_commit`` waits for it."""
    seen: list[list[int]] = []

    @with_db
    def handler(event: object, context: object, conn: Any) -> int:
        Entry.objects.create(number=1)
        conn.execute("insert into django_entry (number) values (2)")
        transaction.on_commit(lambda: seen.append(numbers()))
        assert numbers() == []
        assert conn.info.backend_pid == int(backend())
        return Entry.objects.count()

    assert handler({}, None) == 2
    assert seen == [[1, 2]]
    assert connection.connection is None
    assert engine_for().stats.in_use == 0


def test_with_db_rolls_back(numbers: Numbers) -> None:
    """An exception rolls back, and so does a response of 500 or more; one of 404 commits."""

    @with_db(deadline=20.0)
    def handler(number: int, status: int) -> dict[str, int]:
        Entry.objects.create(number=number)
        if not status:
            raise ZeroDivisionError
        return {"statusCode": status}

    with pytest.raises(ZeroDivisionError):
        handler(1, 0)
    assert handler(2, 503) == {"statusCode": 503}
    assert handler(3, 404) == {"statusCode": 404}
    assert numbers() == [3]


def test_with_db_failed_transaction(numbers: Numbers) -> None:
    """A database error that the handler caught is no success: it is told, unless the response says so itself."""
    numbers()

    @with_db
    def handler(status: int) -> dict[str, int]:
        Entry.objects.create(number=1)
        with suppress(DataError):
            connection.cursor().execute("select 1/0")
        return {"statusCode": status}

    with pytest.raises(TransactionFailed):
        handler(200)
    assert handler(409) == {"statusCode": 409}
    assert numbers() == []


def test_with_db_deadline(table: type[Entry]) -> None:
    """The remaining time of the invocation is the deadline of the ORM's statements; the next call has its own."""

    @with_db
    def handler(event: object, context: object, seconds: float) -> None:
        connection.cursor().execute("select pg_sleep(%s)", [seconds])

    with pytest.raises(OperationalError, match="canceling statement"):
        handler({}, Invocation(), 20.0)
    handler({}, None, 1.2)


def test_with_db_batch(numbers: Numbers) -> None:
    """With ``atomic=False`` every record of a batch has a transaction of its own; on_commit hooks run at once."""

    @with_db(atomic=False)
    def handler(event: dict[str, list[int]], context: object) -> dict[str, list[int]]:
        failed = []
        for number in event["Records"]:
            try:
                with transaction.atomic():
                    Entry.objects.create(number=number)
            except IntegrityError:
                failed.append(number)
        return {"batchItemFailures": failed}

    assert handler({"Records": [1, 2, 2, 3]}, None) == {"batchItemFailures": [2]}
    assert numbers() == [1, 2, 3]


def test_with_db_killed(numbers: Numbers, superuser: psycopg.Connection[Any]) -> None:
    """A handler whose connection is killed hears of it; it is not run again, and the next call is served."""
    runs: list[int] = []

    @with_db
    def handler(dies: bool) -> None:
        runs.append(1)
        Entry.objects.create(number=len(runs))
        if dies:
            kill(superuser, int(backend()))
            Entry.objects.count()

    with pytest.raises(OperationalError):
        handler(True)
    handler(False)
    assert numbers() == [2]


def test_with_db_within(numbers: Numbers) -> None:
    """A handler inside another one joins it: one connection, a savepoint, the outer decision."""

    @with_db
    def inner(number: int) -> bytes:
        Entry.objects.create(number=number)
        return backend()

    @with_db(atomic=False)
    def outer() -> None:
        assert inner(1) == backend()
        with transaction.atomic():
            inner(2)
            transaction.set_rollback(True)

    outer()
    assert numbers() == [1]


def test_with_db_in_a_test(numbers: Numbers) -> None:
    """Inside a test's transaction nothing is committed, as with Django's test client."""
    numbers()

    @with_db
    def handler() -> int:
        Entry.objects.create(number=1)
        return Entry.objects.count()

    with transaction.atomic():
        assert handler() == 1
        assert handler.__name__ == "handler"
        with pytest.raises(IntegrityError), transaction.atomic():
            handler()
            connection.check_constraints()
        transaction.set_rollback(True)
    assert numbers() == []


def test_with_db_lazy(site: Any) -> None:
    """Without a transaction and without a parameter for it, a handler that needs no database acquires none."""

    @with_db(atomic=False)
    def handler(event: object, context: object) -> int:
        return 1

    assert handler({}, None) == 1
    assert engine_for().stats.connects == 0


def test_db_request(table: type[Entry]) -> None:
    """A block gives its connection back, and bounds what is done in it."""
    with db_request(deadline=0.5), pytest.raises(OperationalError):
        connection.cursor().execute("select pg_sleep(20)")
    assert engine_for().stats.in_use == 0
    with db_request():
        connection.cursor().execute("select pg_sleep(0.6)")


async def unfit_async() -> None:
    """Fit for nothing."""


def unfit_generator() -> Iterator[int]:
    """Fit for nothing."""
    yield 1


@pytest.mark.parametrize("unfit", [unfit_async, unfit_generator, Entry, 7])
def test_with_db_unfit(unfit: Any) -> None:
    """What cannot be decorated is told when it is decorated."""
    with pytest.raises(TypeError):
        with_db(unfit)
