"""Connections that are given out idle, or as if they were: for hosts that begin and end transactions by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from proxy import Proxy, Traffic
from psycopg import IsolationLevel, Pipeline
from psycopg.pq import TransactionStatus
from support import entries, kill

from serverless_pg_kit import Engine
from serverless_pg_kit.testing import PostgresServer

pytestmark = pytest.mark.parametrize("deadline", [None, 30.0])
"""With a deadline, the request is watched as well."""


def lent(engine: Engine, use: Callable[[Any], object], **names: Any) -> Any:
    """Let a request lend its connection to `use`; return the request, which has ended."""
    scope = engine.scope(**names)
    try:
        use(scope.connection)
    except BaseException:
        scope.fail()
        raise
    finally:
        scope.end()
    return scope


def traffic(engine: Engine, proxy: Proxy, use: Callable[[Any], object], **names: Any) -> Traffic:
    """Return what passes for a request that lends its connection to `use`, when warm."""
    for _ in range(2):
        lent(engine, use, **names)
    with proxy.counting() as counted:
        lent(engine, use, **names)
    return counted


def test_idle(make_engine: Any, deadline: float | None) -> None:
    """With ``transaction=False`` the connection is idle, and what is left open is committed like any request's."""
    engine = make_engine()
    scope = engine.scope(transaction=False, deadline=deadline)
    assert scope.is_idle is False
    conn = scope.connection
    assert (conn.info.transaction_status, scope.is_idle) == (TransactionStatus.IDLE, True)
    conn.autocommit = True
    conn.autocommit = False
    conn.execute("create table if not exists begun (x int)")
    assert scope.is_idle is False
    scope.end()
    with engine.request() as conn:
        conn.execute("drop table begun")
    assert engine.stats.connects == 1


def test_idle_autocommit(make_engine: Any, deadline: float | None) -> None:
    """In autocommit all requests are idle, whatever they ask for."""
    engine = make_engine(autocommit=True)
    for transaction in (True, False, "ahead"):
        with engine.scope(transaction=transaction, deadline=deadline) as scope:
            assert scope.connection.info.transaction_status == TransactionStatus.IDLE
            assert scope.is_idle


@pytest.mark.parametrize("reset", [True, False])
def test_statement_finds_the_transaction(
    make_engine: Any, proxy: Proxy, server: PostgresServer, deadline: float | None, reset: bool
) -> None:
    """BEGIN that was sent ahead costs nothing: the same messages as in a request, and then COMMIT and the reset."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), reset=reset, census_ttl=3600)

    def use(conn: Any) -> None:
        conn.execute("select 1", prepare=False)
        conn.commit()

    counted = traffic(engine, proxy, use, transaction="ahead", deadline=deadline)
    assert (counted.exchanges, counted.flights) == (4, 4)
    idle = traffic(engine, proxy, use, transaction=False, deadline=deadline)
    assert (idle.exchanges, idle.flights) == (5, 5)
    assert engine.stats.connects == 1


def test_nothing_was_asked_for(make_engine: Any, proxy: Proxy, server: PostgresServer, deadline: float | None) -> None:
    """A transaction that nobody uses ends with the reset; ``commit()`` and ``rollback()`` do nothing on it."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), census_ttl=3600)

    def use(conn: Any) -> None:
        conn.commit()
        conn.rollback()

    counted = traffic(engine, proxy, use, transaction="ahead", deadline=deadline)
    assert (counted.exchanges, counted.flights) == (2, 2)
    assert (engine.stats.commits, engine.stats.rollbacks, engine.stats.maintenance_failures) == (0, 0, 0)


def test_attributes_can_be_set(make_engine: Any, deadline: float | None) -> None:
    """Whatever psycopg allows on an idle connection is allowed, and holds for what comes."""
    engine = make_engine()

    def use(conn: Any) -> None:
        conn.isolation_level = IsolationLevel.SERIALIZABLE
        conn.read_only = True
        assert conn.execute("show transaction_isolation").fetchone() == ("serializable",)
        assert conn.execute("show transaction_read_only").fetchone() == ("on",)
        conn.rollback()
        conn.isolation_level = conn.read_only = None
        conn.autocommit = True
        conn.execute("vacuum pg_class")

    lent(engine, use, transaction="ahead", deadline=deadline)
    lent(engine, lambda conn: conn.execute("select 1"), transaction="ahead", deadline=deadline)
    assert engine.stats.connects == 1


def test_block_commits(make_engine: Any, superuser: Any, ledger: str, deadline: float | None) -> None:
    """A ``transaction()`` block is the outermost one: its end commits."""

    def use(conn: Any) -> None:
        with conn.transaction():
            conn.execute("insert into ledger values (1)")
        conn.execute("insert into ledger values (2)")
        conn.rollback()

    lent(make_engine(), use, transaction="ahead", deadline=deadline)
    assert entries(superuser) == [1]


def copy(conn: Any) -> None:
    """Read by COPY."""
    with conn.cursor().copy("copy (select 1) to stdout") as rows:
        assert list(rows)


def declare(conn: Any) -> None:
    """Use a server-side cursor."""
    with conn.cursor("name") as cursor:
        cursor.execute("select 1")


STATEMENTS: dict[str, Callable[[Any], object]] = {
    "execute": lambda conn: conn.execute("select 1"),
    "executemany": lambda conn: conn.cursor().executemany("select %s", [(1,), (2,)]),
    "stream": lambda conn: list(conn.cursor().stream("select 1")),
    "copy": copy,
    "server-side": declare,
}
"""What begins a transaction where there is none."""


@pytest.mark.parametrize("way", STATEMENTS)
def test_every_statement_finds_it(
    make_engine: Any, proxy: Proxy, server: PostgresServer, deadline: float | None, way: str
) -> None:
    """Whichever way a statement is sent, it is in the transaction that was sent ahead, which ``rollback()`` ends."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), census_ttl=3600)

    def use(conn: Any) -> None:
        STATEMENTS[way](conn)
        assert conn.info.transaction_status == TransactionStatus.INTRANS
        taken_back = [query for query in counted.queries if query in ("BEGIN", "ROLLBACK")]
        assert taken_back == (["ROLLBACK"] if way == "executemany" and Pipeline.is_supported() else [])
        conn.rollback()
        assert conn.info.transaction_status == TransactionStatus.IDLE

    with proxy.counting() as counted:
        for _ in range(2):
            del counted.queries[:]
            lent(engine, use, transaction="ahead", deadline=deadline)


def test_death_before_the_first_statement(make_engine: Any, superuser: Any, deadline: float | None) -> None:
    """A connection that dies between the begin and its first use is lost, not used again, and nothing is unknown."""
    engine = make_engine()

    def use(conn: Any) -> None:
        kill(superuser, conn.info.backend_pid)

    def reconfigure(conn: Any) -> None:
        use(conn)
        conn.autocommit = True

    lent(engine, use, transaction="ahead", deadline=deadline)
    with pytest.raises(psycopg.OperationalError):
        lent(engine, reconfigure, transaction="ahead", deadline=deadline)
    lent(engine, lambda conn: conn.execute("select 1"), transaction="ahead", deadline=deadline)
    assert engine.stats.commit_failures == 0


def test_dead_connection_is_replaced(make_engine: Any, superuser: Any, deadline: float | None) -> None:
    """A connection that died while it was idle is replaced before it is given out, whichever way it is."""
    engine = make_engine()
    for transaction in ("ahead", False):
        lent(engine, lambda conn: kill(superuser, conn.info.backend_pid), transaction=transaction, deadline=deadline)
        lent(engine, lambda conn: conn.execute("select 1"), transaction=transaction, deadline=deadline)


def test_idle_connection_is_guarded(make_engine: Any, deadline: float | None) -> None:
    """A connection that was given out idle holds the guard and no short lease, like any that is in use."""
    engine = make_engine(lease=5)
    locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
    for _ in range(7):
        with engine.scope(transaction=False, deadline=deadline) as scope:
            assert scope.connection.execute(locks).fetchone() == (1,)
            assert scope.connection.execute("show idle_session_timeout").fetchone() != ("5s",)


def test_retire(make_engine: Any, deadline: float | None) -> None:
    """``retire()`` closes what is idle now and what is in use at its end; the current request goes on and commits."""
    engine = make_engine()
    idle = engine.scope(join=False)
    with engine.request(deadline=deadline) as conn:
        assert idle.connection is not conn
        idle.end()
        engine.retire()
        assert engine.stats.open == 1
        assert conn.execute("select 1").fetchone() == (1,)
    assert engine.stats.open == 0
    assert engine.stats.commits == 2
    assert math.isfinite(engine.stats.connect_seconds)
