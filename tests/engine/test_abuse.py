"""What a request may do by mistake, and what must not come of it for the next one."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import threading
import time
from typing import Any

import psycopg
import pytest
from proxy import Proxy
from psycopg.types.string import TextLoader
from support import SYNC_ONLY, eventually, kill

from serverless_pg_kit import AcquireTimeout, TransactionFailed
from serverless_pg_kit.events import Closed, Event
from serverless_pg_kit.testing import PostgresServer


def test_rollback_is_bounded(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """A server that falls silent does not hold a handler that has already failed."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn))
    started = time.monotonic()
    with pytest.raises(ValueError, match="mine"), engine.request(deadline=2.0):
        proxy.hush()
        raise ValueError("mine")
    assert time.monotonic() - started < 10.0
    assert engine.stats.open == 0


def test_cleaning_an_idle_connection_is_bounded(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """clean() without a request does not hang on a silent server."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn))
    engine.connect()
    engine.clean()
    proxy.hush()
    started = time.monotonic()
    assert engine.clean().decision == "closed"
    assert time.monotonic() - started < 10.0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_suspended_generator_does_not_block_the_end(make_engine: Any, superuser: Any) -> None:
    """A notifies() generator that was left holds psycopg's lock; the request still ends, and says what is lost."""
    engine = make_engine()
    held: list[Any] = []

    def body() -> None:
        with engine.request() as conn:
            conn.execute("listen news")
            conn.commit()
            superuser.execute("notify news")
            held.append(conn.notifies(timeout=5))
            next(held[0])
            held.append(conn)

    with contextlib.suppress(TransactionFailed):
        body()
    assert engine.stats.in_use == 0
    assert engine.connect().execute("select 1").fetchone() == (1,)


@SYNC_ONLY
def test_threads_that_share_a_request_share_its_connection(make_engine: Any, superuser: Any, ledger: str) -> None:
    """Two threads that touch the request's connection at once get the same, and all their work is committed."""
    engine = make_engine()
    barrier = threading.Barrier(2)

    def work(entry: int) -> None:
        barrier.wait()
        engine.connection.execute("insert into ledger values (%s)", [entry])

    with engine.scope():
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, entry)) for entry in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert superuser.execute("select count(*) from ledger").fetchone() == (2,)
    assert (engine.stats.connects, engine.stats.in_use) == (1, 0)


def test_work_after_the_request_is_never_committed_by_the_next(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A connection that was used after its request had ended is dropped, with what it did."""
    engine = make_engine()
    with engine.request() as conn:
        kept = conn
    kept.execute("insert into ledger values (1)")
    with engine.request() as conn:
        assert conn is not kept
    assert superuser.execute("select count(*) from ledger").fetchone() == (0,)


def test_rejected_commit_forgets_what_was_prepared(make_engine: Any, superuser: Any, ledger: str) -> None:
    """Statements prepared on tables whose change was rolled back at COMMIT work in the next request."""
    superuser.execute("insert into ledger values (1)")
    superuser.execute("drop table if exists shape; create table shape (a int); alter table shape owner to app")
    engine = make_engine()

    def body() -> None:
        with engine.request() as conn:
            conn.execute("alter table shape add b int")
            conn.execute("select * from shape", prepare=True)
            conn.execute("insert into ledger values (1)")

    with pytest.raises(psycopg.errors.UniqueViolation):
        body()
    for _ in range(2):
        with engine.request() as conn:
            assert conn.execute("select * from shape", prepare=True).fetchall() == []


def test_adapters_and_attributes_of_one_request_end_with_it(make_engine: Any) -> None:
    """Also when `configure` registered adapters of its own."""

    def configure(conn: psycopg.Connection[Any]) -> None:
        conn.adapters.register_loader("int8", TextLoader)

    engine = make_engine(configure=configure)
    with engine.request() as conn:
        conn.adapters.register_loader("int4", TextLoader)
        conn.prepared_max = 3
        conn.tenant = "a"
    with engine.request() as conn:
        assert conn.execute("select 1::int4, 1::int8").fetchone() == (1, "1")
        assert conn.prepared_max == 100
        assert not hasattr(conn, "tenant")


def test_autocommit_by_configure_keeps_its_guard(make_engine: Any) -> None:
    """A connection that `configure` put into autocommit is guarded in every request."""
    engine = make_engine(configure=lambda conn: setattr(conn, "autocommit", True))
    held = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
    for _ in range(3):
        with engine.request() as conn:
            assert conn.execute(held).fetchone() == (1,)


def test_configure_that_leaves_a_transaction_open_is_refused(make_engine: Any) -> None:
    """Its work would be committed by nobody, or by the wrong one."""
    engine = make_engine(configure=lambda conn: conn.execute("select 1"))
    with pytest.raises(ValueError, match="left a transaction open"):
        engine.connect()
    assert engine.stats.open == 0


@pytest.mark.parametrize("kind", ["request", "scope"])
def test_configure_is_no_part_of_the_request(make_engine: Any, kind: str) -> None:
    """What it asks of the engine is not for the connection that is just being configured: it would wait for itself."""
    told: list[str] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        try:
            engine.connection.execute("select 1")
        except RuntimeError as error:
            told.append(str(error))

    engine = make_engine(configure=configure)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(getattr(engine, kind)())
        conn = made if kind == "request" else made.connection
        assert conn.execute("select 1").fetchone() == (1,)
        assert engine.connection is conn
    assert [text.partition(":")[0] for text in told] == ["no request is open"]
    assert engine.stats.connects == 1


def test_connect_inside_a_request_does_not_hide_its_loss(make_engine: Any, superuser: Any) -> None:
    """connect() in a request whose connection died joins it; nobody goes on as if its work were still there."""
    engine = make_engine()

    def body() -> None:
        with engine.request() as conn:
            conn.execute("select 1")
            kill(superuser, conn.info.backend_pid)
            assert engine.connect() is conn

    with pytest.raises(TransactionFailed):
        body()
    assert engine.stats.in_use == 0


def test_request_that_was_never_cleaned_is_begun_anew(make_engine: Any, superuser: Any) -> None:
    """connect() after a forgotten clean() whose connection died meanwhile gets a new one."""
    engine = make_engine()
    kill(superuser, engine.connect().info.backend_pid)
    assert engine.connect().execute("select 1").fetchone() == (1,)
    engine.clean()
    assert engine.stats.in_use == 0


def test_request_that_nobody_ends_is_reclaimed(make_engine: Any) -> None:
    """connect() in threads that end without clean() does not use up the engine."""
    engine = make_engine(max_size=2, max_wait=2.0)
    for _ in range(4):
        thread = threading.Thread(target=engine.connect)
        thread.start()
        thread.join()
        del thread
        gc.collect()
    assert engine.connect().execute("select 1").fetchone() == (1,)


@SYNC_ONLY
def test_interruption_while_closing_gives_the_place_back(make_engine: Any, superuser: Any) -> None:
    """Even a listener that is interrupted does not cost the engine one of its connections."""

    def interrupt(event: Event) -> None:
        if isinstance(event, Closed):
            raise KeyboardInterrupt

    engine = make_engine(on_event=interrupt)

    def body() -> None:
        with engine.request() as conn:
            conn.close()

    with pytest.raises(KeyboardInterrupt):
        body()
    assert engine.stats.in_use == 0


def test_operators_of_a_user_do_not_reach_the_kits_statements(make_engine: Any, superuser: Any) -> None:
    """A search_path with somebody's schema in front of pg_catalog changes nothing for the kit."""
    superuser.execute("create schema if not exists evil; grant usage on schema evil to app")
    superuser.execute(
        "create or replace function evil.boom(int, int) returns bool language sql as 'select 1/($1 - $1) = 0'"
    )
    superuser.execute("create operator evil.= (leftarg = int, rightarg = int, function = evil.boom)")
    superuser.execute("alter role app set search_path = evil, pg_catalog, public")
    try:
        engine = make_engine(census_ttl=0)
        for _ in range(2):
            with engine.request(deadline=5) as conn:
                assert conn.execute("show search_path").fetchone() == ("evil, pg_catalog, public",)
        assert (engine.stats.censuses, engine.stats.maintenance_failures) == (3, 0)  # one as it opened, two at the ends
    finally:
        superuser.execute("alter role app reset search_path")
        superuser.execute("drop schema evil cascade")


def test_synced_pipeline_left_open_is_no_unknown_commit(make_engine: Any, superuser: Any, ledger: str) -> None:
    """Nothing can be committed in pipeline mode; the caller hears that nothing was."""
    engine = make_engine()
    kept: list[Any] = []

    def body() -> None:
        with engine.request() as conn:
            kept.append(conn.pipeline())
            kept.append(kept[0].__enter__())
            conn.execute("insert into ledger values (1)")
            kept[1].sync()

    with pytest.raises(TransactionFailed):
        body()
    assert superuser.execute("select count(*) from ledger").fetchone() == (0,)


@pytest.mark.parametrize("seconds", ["0", "-1", "3"])
def test_connect_timeout_of_libpq_is_understood(make_engine: Any, server: Any, seconds: str) -> None:
    """0 and negative mean no limit of one's own, as in libpq."""
    engine = make_engine(conninfo=f"{server.dsn}?connect_timeout={seconds}")
    assert engine.connect().execute("select 1").fetchone() == (1,)


def test_huge_waits_are_waits(make_engine: Any) -> None:
    """A max_wait longer than the system can wait in one go is none that fails."""
    engine = make_engine(max_size=1, max_wait=1e10)
    with engine.request():
        thread = threading.Thread(target=lambda: engine.request().__enter__(), daemon=True)
        thread.start()
        assert not eventually(lambda: not thread.is_alive(), seconds=0.2)
    assert eventually(lambda: not thread.is_alive())


def test_max_size_is_told_apart_from_the_servers(make_engine: Any) -> None:
    """A process that waits for itself is told so."""
    engine = make_engine(max_size=1, max_wait=0.1)
    with engine.request(), pytest.raises(AcquireTimeout, match="max_size"):
        engine.census()
