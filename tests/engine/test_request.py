"""A request: what it commits, what it rolls back, and what it tells."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import math
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from support import SYNC_ONLY, entries, eventually

from serverless_pg_kit import Engine, TransactionFailed
from serverless_pg_kit.events import Committed, Event, RolledBack
from serverless_pg_kit.testing import PostgresServer


def test_success_commits(make_engine: Any, superuser: Any, ledger: str) -> None:
    """The connection is inside a transaction, which is committed at the end."""
    engine = make_engine()
    with engine.request() as conn:
        assert conn.info.transaction_status == TransactionStatus.INTRANS
        conn.execute("insert into ledger values (1)")
    assert entries(superuser) == [1]
    assert (engine.stats.commits, engine.stats.rollbacks) == (1, 0)


def test_exception_rolls_back_and_goes_through(make_engine: Any, superuser: Any, ledger: str) -> None:
    """The user's own exception arrives unchanged, and nothing is kept."""
    engine = make_engine()
    wrong = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, engine.request() as conn:
        conn.execute("insert into ledger values (1)")
        raise wrong
    assert caught.value is wrong
    assert entries(superuser) == []


def test_connection_is_kept_for_the_next_request(make_engine: Any) -> None:
    """Requests one after the other share one backend."""
    engine = make_engine()
    pids = set()
    for _ in range(5):
        with engine.request() as conn:
            pids.add(conn.info.backend_pid)
    assert len(pids) == 1
    assert (engine.stats.connects, engine.stats.reuses, engine.stats.open) == (1, 4, 1)


def test_scope_without_touch_acquires_nothing(make_engine: Any) -> None:
    """A request that needs no database costs no connection."""
    engine = make_engine()
    with engine.scope() as scope:
        assert not scope.has_connection
    assert scope.report.decision == "kept"
    assert engine.stats.connects == 0


def test_engine_connection_is_the_current_requests(make_engine: Any) -> None:
    """Code deep inside a request finds its connection without having it passed down."""
    engine = make_engine()
    with engine.scope() as scope:
        assert engine.connection is scope.connection
    with pytest.raises(RuntimeError, match="no request is open"):
        engine.connection  # noqa: B018 - the access is the test


def test_connection_of_an_ended_request_is_refused(make_engine: Any) -> None:
    """A scope that was kept too long does not hand out a connection that may serve somebody else."""
    with make_engine().scope() as scope:
        assert scope.connection
    with pytest.raises(RuntimeError, match="has ended"):
        scope.connection  # noqa: B018 - the access is the test


def test_request_has_a_connection_only_in_its_block(make_engine: Any) -> None:
    """`engine.request()` acquires when it is entered: whoever touches it before or after is told so."""
    engine = make_engine()
    request = engine.request()
    with pytest.raises(RuntimeError, match="has not begun"):
        request.connection  # noqa: B018 - the access is the test
    with request as conn:
        assert request.connection is conn is engine.connection
    with pytest.raises(RuntimeError, match="has ended"):
        request.connection  # noqa: B018 - the access is the test
    assert engine.stats.connects == 1


def one_inside_another(engine: Engine) -> weakref.ref[Any]:
    """Serve a request inside another one; return a reference to that."""
    with engine.scope() as outer, engine.request(join=False) as conn:
        assert outer.connection is not conn
        return weakref.ref(outer)


def test_ended_requests_are_forgotten(server: PostgresServer) -> None:
    """A thread that has served requests, one inside another too, keeps but the latest, and not the engine with it."""
    engine = Engine(conninfo=server.dsn)
    requests = [one_inside_another(engine) for _ in range(3)]
    with engine.request(deadline=30.0):
        pass
    gc.collect()
    assert [request for request in requests if request() is not None] == []
    engine.close()
    remembered = weakref.ref(engine)
    del engine
    gc.collect()
    assert remembered() is None


@SYNC_ONLY  # the others run each call in a context of its own
def test_end_in_another_context_leaves_that_alone(make_engine: Any) -> None:
    """A request that ends where it did not begin makes the one around it nobody else's current one."""
    engine, elsewhere = make_engine(), contextvars.Context()
    with engine.scope():
        with contextlib.ExitStack() as stack:
            inner = stack.enter_context(engine.scope(join=False))
            assert inner.connection is engine.connection
            elsewhere.run(stack.close)
        assert inner.report.decision == "kept"
        with pytest.raises(RuntimeError, match="no request is open"):
            elsewhere.run(lambda: engine.connection)


@pytest.mark.parametrize("join", [True, False])
def test_request_after_one_that_has_ended(make_engine: Any, join: bool) -> None:
    """It is a request of its own, wherever the other one stood: inside an outer one, or alone."""
    engine = make_engine()
    with engine.request():
        pass
    with engine.scope() as outer:
        with engine.request(join=False) as inner:
            pass
        assert engine.connection is outer.connection
        with engine.request(join=join) as conn:
            assert (conn is outer.connection) == join
    with pytest.raises(RuntimeError, match="no request is open"):
        engine.connection  # noqa: B018 - the access is the test
    with engine.request(join=join) as conn:
        assert engine.connection is conn
    assert inner is not None
    assert (engine.stats.in_use, engine.stats.rollbacks) == (0, 0)


@SYNC_ONLY  # its tests have the same with tasks
def test_end_waits_for_a_thread_that_acquires(make_engine: Any) -> None:
    """A scope that ends while another thread is about to get its connection gives that back as well."""
    engine = make_engine(max_size=1, max_wait=10.0)
    scope = engine.scope()

    with engine.request():
        thread = threading.Thread(target=lambda: scope.connection)
        thread.start()
        assert eventually(lambda: engine.stats.waiting == 1)
        ender = threading.Thread(target=scope.end)
        ender.start()
    thread.join(10.0)
    ender.join(10.0)
    assert [thread.is_alive(), ender.is_alive()] == [False, False]
    assert scope.report.decision == "kept"
    assert (engine.stats.in_use, engine.stats.open, engine.stats.commits) == (0, 1, 2)


@SYNC_ONLY  # no listener awaits
def test_request_that_is_about_to_end_acquires_nothing(make_engine: Any) -> None:
    """Whoever touches it while its COMMIT is told hears that it has ended: nobody would end it again."""
    told: list[str] = []

    def touch(event: Event) -> None:
        if isinstance(event, Committed):
            with pytest.raises(RuntimeError) as caught:
                scope.connection  # noqa: B018 - the access is the test
            told.append(str(caught.value))

    engine = make_engine(on_event=touch)
    with engine.scope() as scope:
        scope.connection.execute("select 1")
    assert ["has ended" in text for text in told] == [True]
    assert (engine.stats.connects, engine.stats.in_use) == (1, 0)


@SYNC_ONLY  # signal handlers close no AsyncEngine
@pytest.mark.parametrize("kind", ["request", "scope"])
def test_signal_handler_that_closes_the_engine_while_a_request_acquires(make_engine: Any, kind: str) -> None:
    """It does not wait for the request that it interrupts, which hears of it and commits nothing."""
    engine = make_engine(max_size=1, max_wait=10.0)
    is_closed, main = threading.Event(), threading.get_ident()

    def close(*values: Any) -> None:
        engine.close()
        is_closed.set()

    def hold() -> None:
        with engine.request():
            assert eventually(lambda: engine.stats.waiting == 1)
            signal.pthread_kill(main, signal.SIGALRM)
            assert is_closed.wait(10.0)

    before = signal.signal(signal.SIGALRM, close)
    holder = threading.Thread(target=hold)
    try:
        holder.start()
        assert eventually(lambda: engine.stats.in_use == 1)
        with pytest.raises(RuntimeError, match="while it acquired"), getattr(engine, kind)():
            engine.connection.execute("select 1")
    finally:
        signal.signal(signal.SIGALRM, before)
        holder.join(10.0)
    assert engine.stats.in_use == 0
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("kind", ["request", "scope"])
def test_request_is_entered_once(make_engine: Any, kind: str) -> None:
    """Who keeps the object at module level, and enters it in each invocation, is told in the second one."""
    engine = make_engine()
    request = getattr(engine, kind)()
    with request:
        engine.connection.execute("select 1")
    with pytest.raises(RuntimeError, match="entered once"), request:
        pass
    assert (engine.stats.in_use, engine.stats.open) == (0, 1)


def test_request_that_is_entered_while_it_is_open(make_engine: Any) -> None:
    """It has one connection, and keeps it."""
    engine = make_engine()
    request = engine.request()
    with request as conn:
        with pytest.raises(RuntimeError, match="entered once"), request:
            pass
        assert conn.execute("select 1").fetchone() == (1,)
    assert (engine.stats.in_use, engine.stats.open, engine.stats.commits) == (0, 1, 1)


def test_request_without_a_block(make_engine: Any, ledger: str, superuser: Any) -> None:
    """Who holds a scope without entering it ends it by hand: several at once, none is the current one, each commits."""
    engine = make_engine()
    one, other = engine.scope(), engine.scope()
    assert one.connection is not other.connection
    one.connection.execute("insert into ledger values (1)")
    other.connection.execute("insert into ledger values (2)")
    other.fail()
    with pytest.raises(RuntimeError, match="no request is open"):
        _ = engine.connection

    assert (one.end().decision, other.end().decision) == ("kept", "kept")
    assert one.end() == one.report
    assert entries(superuser) == [1]
    assert engine.stats.in_use == 0


def test_request_that_is_suspended(make_engine: Any) -> None:
    """A host that calls a request in several pieces makes it the current one for each; in between it is not."""
    engine = make_engine()
    scope = engine.scope()
    for _ in range(2):
        scope.resume()
        scope.resume()
        with engine.request() as conn:
            assert conn is scope.connection
        scope.suspend()
        with pytest.raises(RuntimeError, match="no request is open"):
            _ = engine.connection

    scope.resume()
    scope.end()
    with pytest.raises(RuntimeError, match="no request is open"):
        _ = engine.connection
    assert (engine.stats.connects, engine.stats.commits, engine.stats.in_use) == (1, 1, 0)


def test_context_that_outlives_its_request_starts_a_new_one(make_engine: Any) -> None:
    """A task that was begun inside a request and goes on after it gets a request of its own."""
    engine = make_engine()
    with engine.request():
        inherited = contextvars.copy_context()

    def late() -> Any:
        with engine.request() as conn:
            return conn.execute("select 1").fetchone()

    assert inherited.run(late) == (1,)


def test_request_inside_a_request_joins_it(make_engine: Any, superuser: Any, ledger: str) -> None:
    """The inner one uses the outer's connection and transaction, so one connection is enough."""
    engine = make_engine(max_size=1)
    with engine.request() as outer:
        with engine.request() as inner:
            assert inner is outer
            inner.execute("insert into ledger values (1)")
        assert entries(superuser) == []
    assert entries(superuser) == [1]


def test_request_can_refuse_to_join(make_engine: Any) -> None:
    """With `join=False` it gets a connection of its own."""
    engine = make_engine()
    with engine.request() as outer, engine.request(join=False) as inner:
        assert inner is not outer
        assert engine.connection is inner


def test_failure_of_a_joined_request_is_not_committed_by_halves(make_engine: Any, superuser: Any, ledger: str) -> None:
    """If the inner request fails and its exception is caught, the outer one is rolled back and says so."""
    engine = make_engine()

    def outer() -> None:
        with engine.request() as conn:
            with pytest.raises(ValueError, match="inner"), engine.request() as joined:
                joined.execute("insert into ledger values (1)")
                raise ValueError("inner")
            conn.execute("insert into ledger values (2)")

    with pytest.raises(TransactionFailed):
        outer()
    assert entries(superuser) == []


def test_failed_transaction_is_told(make_engine: Any) -> None:
    """Whoever catches a database error and goes on as if nothing were does not believe in a commit."""
    engine = make_engine()

    def body() -> None:
        with engine.request() as conn, pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("select 1/0")

    with pytest.raises(TransactionFailed, match="was rolled back"):
        body()
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def catches_a_database_error(engine: Engine) -> None:
    """A request whose code catches an error and goes on."""
    with engine.request() as conn, contextlib.suppress(psycopg.Error):
        conn.execute("select 1/0")


def catches_a_joined_failure(engine: Engine) -> None:
    """A request whose code catches what a request inside it raised."""
    with engine.request(), contextlib.suppress(ValueError), engine.request():
        raise ValueError("inner")


def raises(engine: Engine) -> None:
    """A request whose own code fails."""
    with engine.request():
        raise ValueError("mine")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (catches_a_database_error, "the transaction had failed"),
        (catches_a_joined_failure, "a request inside this one failed"),
        (raises, "the request failed"),
    ],
)
def test_event_tells_why_a_request_was_rolled_back(
    make_engine: Any, body: Callable[[Engine], None], reason: str
) -> None:
    """Who watches the events can tell a request's own failure from one inside it, and from a caught error."""
    events: list[Event] = []
    with contextlib.suppress(TransactionFailed, ValueError):
        body(make_engine(on_event=events.append))
    assert [event.reason for event in events if isinstance(event, RolledBack)] == [reason]


@pytest.mark.parametrize(
    ("status", "rollback", "kept"),
    [(200, None, True), (404, None, True), (500, None, False), (409, True, False), (503, False, True)],
)
def test_status_decides(
    make_engine: Any, superuser: Any, ledger: str, status: int, rollback: bool | None, kept: bool
) -> None:
    """The answer's status says how the request ends, unless the adapter says what it means."""
    with make_engine().scope() as scope:
        scope.connection.execute("insert into ledger values (1)")
        scope.respond(status, rollback=rollback)
    assert entries(superuser) == ([1] if kept else [])


def test_scope_fail_rolls_back_silently(make_engine: Any, superuser: Any, ledger: str) -> None:
    """An adapter that saw a 500 ends the request without an exception."""
    with make_engine().scope() as scope:
        scope.connection.execute("insert into ledger values (1)")
        scope.fail()
    assert entries(superuser) == []


def test_manual_form(make_engine: Any, superuser: Any, ledger: str) -> None:
    """connect, clean and close do for a handler what serverless-postgres does."""
    engine = make_engine()
    engine.connect().execute("insert into ledger values (1)")
    assert engine.clean().decision == "kept"
    assert entries(superuser) == [1]
    engine.connect().execute("insert into ledger values (2)")
    engine.close()
    assert entries(superuser) == [1]
    assert engine.stats.open == 0
    assert engine.connect().execute("select 1").fetchone() == (1,)


def test_clean_rolls_back_a_failed_transaction_without_a_word(make_engine: Any) -> None:
    """The manual form reports by events, and the next request works."""
    engine = make_engine()
    with pytest.raises(psycopg.errors.DivisionByZero):
        engine.connect().execute("select 1/0")
    engine.clean()
    assert engine.stats.rollbacks == 1
    assert engine.connect().execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("wrong", ["select 1/0", "select 1"], ids=["database error", "error of its own"])
def test_clean_tells_that_a_joined_request_failed(make_engine: Any, superuser: Any, ledger: str, wrong: str) -> None:
    """Whoever ends a request by hand may not know that a request inside it failed: it hears that nothing is kept."""
    engine = make_engine()
    engine.connect().execute("insert into ledger values (1)")
    with contextlib.suppress(psycopg.Error, ValueError), engine.request() as joined:
        joined.execute("insert into ledger values (2)")
        joined.execute(wrong)
        raise ValueError("inner")
    with pytest.raises(TransactionFailed):
        engine.clean()
    assert entries(superuser) == []
    assert engine.connect().execute("select 1").fetchone() == (1,)


def test_clean_without_anything_open(make_engine: Any) -> None:
    """Cleaning needs neither a request nor a connection, and opens none."""
    engine = make_engine()
    assert engine.clean().decision == "closed"
    assert engine.stats.connects == 0
    engine.connect()
    engine.clean()
    assert engine.clean().decision == "kept"


@pytest.mark.parametrize(
    ("level", "read_only", "shown"),
    [(IsolationLevel.SERIALIZABLE, True, ("serializable", "on")), (None, None, ("read committed", "off"))],
)
def test_isolation_and_read_only_hold_for_one_request(
    make_engine: Any, level: IsolationLevel | None, read_only: bool | None, shown: tuple[str, str]
) -> None:
    """What one request asks for the next one does not inherit."""
    engine = make_engine()
    query = "select current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    with engine.request(isolation_level=level, read_only=read_only) as conn:
        assert conn.execute(query).fetchone() == shown
    with engine.request() as conn:
        assert conn.execute(query).fetchone() == ("read committed", "off")


def test_deadline_cancels_a_statement_on_the_server(make_engine: Any) -> None:
    """A query that would outlive the request is cancelled, with an error while there is time left."""
    engine = make_engine()
    with pytest.raises(psycopg.errors.QueryCanceled), engine.request(deadline=1.0) as conn:
        conn.execute("select pg_sleep(30)")
    with engine.request() as conn:
        assert conn.execute("show statement_timeout").fetchone() == ("0",)


def test_deadline_never_lengthens_a_timeout_of_the_role(
    make_engine: Any, server: PostgresServer, superuser: Any
) -> None:
    """A shorter statement_timeout that the administrator set stays in force."""
    superuser.execute("alter role app set statement_timeout = '30s'")
    try:
        engine = make_engine()
        with engine.request(deadline=60) as conn:
            assert conn.execute("show statement_timeout").fetchone() == ("30s",)
        with engine.request(deadline=20) as conn:
            assert conn.execute("select current_setting('statement_timeout')::interval < '20 s'").fetchone() == (True,)
    finally:
        superuser.execute("alter role app reset statement_timeout")


@pytest.mark.parametrize("deadline", [None, math.inf])
def test_without_deadline_nothing_is_set(make_engine: Any, deadline: float | None) -> None:
    """No deadline means no time-out, for migrations and COPY."""
    with make_engine().request(deadline=deadline) as conn:
        assert conn.execute("show statement_timeout").fetchone() == ("0",)


def test_autocommit(make_engine: Any, superuser: Any, ledger: str) -> None:
    """With autocommit there is no transaction around the request; each statement counts by itself."""
    engine = make_engine(autocommit=True)
    with pytest.raises(ValueError, match="mine"), engine.request(deadline=5) as conn:
        assert conn.info.transaction_status == TransactionStatus.IDLE
        conn.execute("insert into ledger values (1)")
        assert conn.execute("show statement_timeout").fetchone() != ("0",)
        raise ValueError("mine")
    assert entries(superuser) == [1]
    with engine.request() as conn:
        assert conn.execute("show statement_timeout").fetchone() == ("0",)


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_threads_share_the_engine_but_not_a_connection(
    make_engine: Any, superuser: Any, ledger: str, deadline: float | None
) -> None:
    """Twenty threads over three connections are all served, and no two at once have the same one."""
    engine = make_engine(max_size=3, max_wait=60)
    busy: set[int] = set()
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for entry in range(first, first + 10):
                with engine.request(deadline=deadline) as conn:
                    assert id(conn) not in busy
                    busy.add(id(conn))
                    conn.execute("insert into ledger select %s from pg_sleep(0.001)", [entry])
                    busy.remove(id(conn))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number * 10,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert entries(superuser) == list(range(200))
    assert engine.stats.connects <= 3
    assert (engine.stats.open, engine.stats.in_use) == (engine.stats.connects, 0)


def test_autocommit_has_nothing_to_roll_back(make_engine: Any, superuser: Any, ledger: str) -> None:
    """With autocommit a joined request that fails takes nothing back, and nobody is told that it did."""
    engine = make_engine(autocommit=True)
    with engine.request() as conn:
        with contextlib.suppress(ValueError), engine.request() as joined:
            joined.execute("insert into ledger values (1)")
            raise ValueError("inner")
        conn.execute("insert into ledger values (2)")
    assert entries(superuser) == [1, 2]
    assert (engine.stats.rollbacks, engine.stats.connects, engine.stats.open) == (0, 1, 1)
