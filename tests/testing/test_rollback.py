"""Requests that are rolled back at the end of a test: they behave as if they committed, and leave nothing."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import psycopg
import pytest
from blocking import clothed, decorated, naked
from psycopg import errors
from psycopg.rows import dict_row
from support import entries, eventually, kill

from serverless_pg_kit import AcquireTimeout, Engine, TransactionFailed, testing
from serverless_pg_kit.closing import PREPARE_AFTER


def rolled_back(engine: Any) -> Any:
    """Let requests of `engine`, of either shell, be rolled back."""
    return clothed(testing.rolled_back(naked(engine)))


@pytest.fixture(params=[0, PREPARE_AFTER + 4], ids=["new", "warm"])
def engine(request: pytest.FixtureRequest, make_engine: Any) -> Engine:
    """An engine whose requests have a second to come to their connection; one has served none, the other a few."""
    engine: Engine = make_engine(max_wait=1.0)
    for _ in range(request.param):
        with engine.request():
            pass
    return engine


def write(engine: Engine, *numbers: int) -> None:
    """Write entries in one request, the way an application does."""
    with engine.request() as conn:
        for number in numbers:
            conn.execute("insert into ledger values (%s)", [number])


def test_nothing_is_left(engine: Engine, superuser: Any, ledger: str) -> None:
    """Requests see what those before them wrote, the test sees all of it, and others never do."""
    with rolled_back(engine) as conn:
        write(engine, 1)
        with engine.request() as other:
            assert entries(other) == [1]
            other.execute("insert into ledger values (2)")
        assert entries(conn) == [1, 2]
        assert entries(superuser) == []
    assert entries(superuser) == []
    write(engine, 3)
    assert entries(superuser) == [3]
    assert (engine.stats.in_use, engine.stats.open) == (0, 1)


def test_test_that_fails_leaves_nothing(engine: Engine, superuser: Any, ledger: str) -> None:
    """The error that ended the block is the one that comes out of it."""
    with pytest.raises(ZeroDivisionError), rolled_back(engine):
        write(engine, 1)
        raise ZeroDivisionError
    assert entries(superuser) == []
    assert engine.stats.in_use == 0


def test_every_way_to_a_request_is_rolled_back(engine: Engine, superuser: Any, ledger: str) -> None:
    """Handlers, scopes, requests by hand and requests of their own."""

    def handler(event: int, context: object, conn: Any) -> dict[str, int]:
        conn.execute("insert into ledger values (%s)", [event])
        return {"statusCode": 200}

    with rolled_back(engine) as conn:
        decorated(engine, handler)(1, None)
        with engine.scope():
            engine.connection.execute("insert into ledger values (2)")
        engine.connect().execute("insert into ledger values (3)")
        assert engine.clean().decision == "kept"
        with engine.request(), engine.request(join=False) as own:
            own.execute("insert into ledger values (4)")
        assert entries(conn) == [1, 2, 3, 4]
    assert entries(superuser) == []


def test_request_that_fails_is_undone(engine: Engine, ledger: str) -> None:
    """What the application rolls back is gone in the test, too, and what was before it is still there."""

    def handler(event: object, context: object, conn: Any) -> dict[str, int]:
        conn.execute("insert into ledger values (2)")
        return {"statusCode": 503}

    with rolled_back(engine) as conn:
        write(engine, 1)
        decorated(engine, handler)(None, None)
        assert entries(conn) == [1]
        with contextlib.suppress(ZeroDivisionError), engine.request() as failing:
            failing.execute("insert into ledger values (3)")
            raise ZeroDivisionError
        assert entries(conn) == [1]
        with engine.scope() as scope:
            scope.connection.execute("insert into ledger values (4)")
            scope.fail()
        assert entries(conn) == [1]


def test_failed_transaction_is_told(engine: Engine, ledger: str) -> None:
    """Who catches a database error and believes in success is told, as in production; the test goes on."""
    with rolled_back(engine) as conn:
        with pytest.raises(TransactionFailed), engine.request() as failing:
            failing.execute("insert into ledger values (1)")
            with contextlib.suppress(errors.DivisionByZero):
                failing.execute("select 1 / 0")
        assert entries(conn) == []
        write(engine, 2)
        assert entries(conn) == [2]


def test_deferred_constraints_are_checked_at_the_end_of_a_request(engine: Engine, ledger: str) -> None:
    """What COMMIT would refuse is refused, undone, and deferred again in the next request."""
    with rolled_back(engine) as conn:
        for _ in range(2):
            with pytest.raises(errors.UniqueViolation):
                write(engine, 1, 1)
            assert entries(conn) == []
        with engine.request() as mending:
            mending.execute("insert into ledger values (1)")
            mending.execute("insert into ledger values (1)")
            mending.execute("update ledger set entry = 2 where ctid = (select max(ctid) from ledger)")
        assert entries(conn) == [1, 2]


def test_request_inside_a_request_joins_it(engine: Engine, ledger: str) -> None:
    """What joins another request shares its fate; one of its own does not."""
    with rolled_back(engine) as conn:
        with contextlib.suppress(ZeroDivisionError), engine.request():
            write(engine, 1)
            with engine.request(join=False) as own:
                own.execute("insert into ledger values (2)")
            raise ZeroDivisionError
        assert entries(conn) == []
        with engine.request() as outer:
            with contextlib.suppress(ZeroDivisionError), engine.request(join=False) as own:
                own.execute("insert into ledger values (3)")
                raise ZeroDivisionError
            outer.execute("insert into ledger values (4)")
        assert entries(conn) == [4]


def test_commit_and_rollback_work_by_savepoints(engine: Engine, superuser: Any, ledger: str) -> None:
    """``conn.commit()`` keeps what was done from what comes later, ``conn.rollback()`` undoes up to there."""
    with rolled_back(engine) as conn:
        with contextlib.suppress(ZeroDivisionError), engine.request() as working:
            working.execute("insert into ledger values (1)")
            working.commit()
            working.execute("insert into ledger values (2)")
            working.rollback()
            working.execute("insert into ledger values (3)")
            with contextlib.suppress(errors.DivisionByZero):
                working.execute("select 1 / 0")
            working.commit()  # of a failed transaction: a rollback
            working.execute("insert into ledger values (4)")
            raise ZeroDivisionError
        assert entries(conn) == [1]
        conn.execute("insert into ledger values (5)")
        conn.commit()
        conn.execute("insert into ledger values (6)")
        conn.rollback()
        assert entries(conn) == [1, 5]
    assert entries(superuser) == []


def test_commit_refuses_what_commit_refuses(engine: Engine, ledger: str) -> None:
    """A violated constraint, and a ``transaction()`` block, whose own commit it would be."""
    with rolled_back(engine) as conn:
        with engine.request() as working:
            working.execute("insert into ledger values (1), (1)")
            with pytest.raises(errors.UniqueViolation):
                working.commit()
            with working.transaction():
                working.execute("insert into ledger values (2)")
                for end in (working.commit, working.rollback):
                    with pytest.raises(psycopg.ProgrammingError, match="forbidden"):
                        end()
        assert entries(conn) == [2]


def test_what_was_committed_by_hand_and_then_failed_is_told(engine: Engine, ledger: str) -> None:
    """A request that fails keeps what it had committed itself: that is what happens in production."""
    with rolled_back(engine) as conn:
        with pytest.raises(ZeroDivisionError), engine.request() as working:
            working.execute("insert into ledger values (1)")
            working.commit()
            raise ZeroDivisionError
        assert entries(conn) == [1]


@pytest.mark.parametrize("statements", [["commit"], ["commit", "begin"], ["rollback"]])
def test_commit_by_sql_is_told(engine: Engine, superuser: Any, ledger: str, statements: list[str]) -> None:
    """It cannot be undone, so nobody shall believe that it was: the request and the block raise."""

    def body() -> None:
        with engine.request() as conn:
            conn.execute("insert into ledger values (1)")
            for statement in statements:
                conn.execute(statement.encode())

    inside, after = "SQL of its own inside", "SQL of its own: what it left stays"
    with pytest.raises(RuntimeError, match=after), rolled_back(engine), pytest.raises(RuntimeError, match=inside):
        body()
    assert entries(superuser) == ([1] if "commit" in statements else [])
    assert engine.stats.in_use == 0


def test_read_only_requests_refuse_to_write(engine: Engine, ledger: str) -> None:
    """And only they: the next request writes."""
    with rolled_back(engine) as conn:
        with pytest.raises(errors.ReadOnlySqlTransaction), engine.request(read_only=True) as reading:
            reading.execute("insert into ledger values (1)")
        with engine.request(read_only=True):
            pass
        write(engine, 2)
        assert entries(conn) == [2]


def test_requests_of_other_threads_take_turns(engine: Engine, superuser: Any, ledger: str) -> None:
    """They are rolled back as well, and none of them ends another one's work."""
    with rolled_back(engine) as conn:

        def work(number: int) -> None:
            with contextlib.suppress(ZeroDivisionError), engine.request(deadline=30):
                write(engine, number)
                if number % 2:
                    raise ZeroDivisionError

        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert entries(conn) == [0, 2, 4, 6]
    assert entries(superuser) == []


def test_turn_that_does_not_come_is_told(engine: Engine, ledger: str) -> None:
    """A request of another thread waits no longer than `max_wait`, or its deadline."""
    caught: list[BaseException] = []

    def work() -> None:
        try:
            with engine.request(deadline=0.05):
                raise AssertionError("not served")
        except AcquireTimeout as error:
            caught.append(error)

    with rolled_back(engine) as conn:
        with engine.request():
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        assert "take turns" in str(caught)
        assert entries(conn) == []


def test_requests_that_nobody_ended_are_over(engine: Engine, superuser: Any, ledger: str) -> None:
    """They are rolled back with the rest, and what is done with them later reaches no connection."""
    with rolled_back(engine):
        engine.connect().execute("insert into ledger values (1)")
        forgotten = engine.scope(join=False).__enter__()
        forgotten.connection.execute("insert into ledger values (2)")
    assert entries(superuser) == []
    forgotten.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="has ended"):
        forgotten.connection.execute("select 1")
    write(engine, 3)
    engine.close()
    assert entries(superuser) == [3]
    assert engine.stats.open == 0


def test_forgotten_inner_request_goes_with_the_outer(engine: Engine, ledger: str) -> None:
    """The end of a request ends those inside it that nobody ended."""
    with rolled_back(engine) as conn:
        with engine.request():
            inner = engine.scope(join=False).__enter__()
            inner.connection.execute("insert into ledger values (1)")
        assert inner.report is not None
        write(engine, 2)
        assert entries(conn) == [2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_loose_ends_stay_with_their_request(engine: Engine) -> None:
    """A cursor that was left open and a row factory are gone in the next request."""
    with rolled_back(engine):
        for _ in range(2):
            with engine.request() as conn:
                conn.row_factory = dict_row
                conn.cursor("rows").execute("select generate_series(1, 9)")
        with engine.request() as conn:
            assert conn.execute("select 1").fetchone() == (1,)


def test_unfinished_copy_costs_the_connection(engine: Engine, superuser: Any, ledger: str) -> None:
    """As in production, the request hears of it; the rest of the test has no connection, the next one has."""
    unfinished: list[Any] = []

    def body() -> None:
        with engine.request() as conn:
            unfinished.append(conn.cursor().copy("copy ledger from stdin"))
            unfinished[0].__enter__()

    with rolled_back(engine):
        with pytest.raises(TransactionFailed):
            body()
        with pytest.raises(psycopg.OperationalError, match="is gone"):
            write(engine, 1)
    with pytest.raises(psycopg.OperationalError):
        unfinished[0].__exit__(None, None, None)
    write(engine, 2)
    assert entries(superuser) == [2]


def test_server_that_dies_ends_the_test_only(engine: Engine, superuser: Any, ledger: str) -> None:
    """The connection is lost with all that was done; the engine goes on afterwards."""
    with rolled_back(engine) as conn:
        write(engine, 1)
        kill(superuser, conn.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            write(engine, 2)
    write(engine, 3)
    assert entries(superuser) == [3]


def test_census_and_close_are_as_ever(engine: Engine) -> None:
    """The engine's other methods work inside the block, over connections of their own."""
    with rolled_back(engine) as conn:
        assert engine.census().used > 0
        assert engine.clean().decision == "kept"
        engine.close()
        with engine.request() as other:
            assert other is conn
    assert eventually(lambda: engine.stats.open == 0)


def test_engines_that_cannot_be_rolled_back_are_refused(make_engine: Any, engine: Engine) -> None:
    """Those that commit each statement, those that are rolled back already, and what is no engine."""
    with pytest.raises(ValueError, match="autocommit"), rolled_back(make_engine(autocommit=True)):
        raise AssertionError("not served")
    with rolled_back(engine), pytest.raises(RuntimeError, match="already"), rolled_back(engine):
        raise AssertionError("not served")
    nothing: Any = None
    with pytest.raises(TypeError, match="takes an engine, not NoneType"), rolled_back(nothing):
        raise AssertionError("not served")
    assert engine.stats.in_use == 0
