"""Requests whose holder begins and ends transactions by itself, and the settings that sessions start from."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from conftest import MakeEngine
from proxy import Proxy
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from support import entries, eventually, kill, sessions

from serverless_pg_kit import SettingsError
from serverless_pg_kit.testing import PostgresServer

SETTINGS = "select current_setting('timezone'), current_setting('app.tenant', true), current_user"


def test_transaction_false_idle(make_engine: MakeEngine) -> None:
    """The connection comes idle, with the guard taken and the lease raised, and may be put into autocommit mode."""
    engine = make_engine(lease=5.0)
    for _ in range(2):
        with engine.scope(transaction=False) as scope:
            conn = scope.connection
            assert conn.pgconn.transaction_status == TransactionStatus.IDLE
            conn.autocommit = True
            assert conn.execute("show idle_session_timeout").fetchone() == ("0",)
            assert conn.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (1,)
        assert scope.report is not None
        assert scope.report.decision == "kept"

    assert (engine.stats.connects, engine.stats.reuses) == (1, 1)


def test_transaction_false_own_transactions(
    make_engine: MakeEngine, ledger: str, superuser: psycopg.Connection[Any]
) -> None:
    """Transactions of the holder's own are its own; one that it left open is rolled back after `fail`."""
    engine = make_engine()
    scope = engine.scope(join=False, transaction=False)
    conn = scope.connection
    conn.execute("insert into ledger values (1)")
    conn.commit()
    conn.execute("insert into ledger values (2)")
    scope.fail()
    scope.end()

    assert entries(superuser) == [1]


def test_transaction_false_after_others(make_engine: MakeEngine) -> None:
    """Requests of both kinds take turns on one connection."""
    engine = make_engine()
    for kind in (True, False, True, False) * 3:
        with engine.scope(transaction=kind) as scope:
            status = scope.connection.pgconn.transaction_status
            assert status == (TransactionStatus.INTRANS if kind else TransactionStatus.IDLE)

    assert engine.stats.connects == 1


def test_transaction_false_dead(make_engine: MakeEngine, fleet: str, superuser: psycopg.Connection[Any]) -> None:
    """A connection that was killed while it was idle is replaced unseen."""
    engine = make_engine()
    with engine.scope(transaction=False) as scope:
        scope.connection.execute("select 1")
    kill(superuser, *sessions(superuser, fleet))
    with engine.scope(transaction=False) as scope:
        assert scope.connection.execute("select 1").fetchone() == (1,)


def test_transaction_false_deadline(make_engine: MakeEngine) -> None:
    """The deadline ends a statement."""
    with make_engine().scope(transaction=False, deadline=0.5) as scope:
        scope.connection.autocommit = True
        with pytest.raises(psycopg.errors.QueryCanceled):
            scope.connection.execute("select pg_sleep(30)")


def test_transaction_false_flights(make_engine: MakeEngine, server: PostgresServer, proxy: Proxy) -> None:
    """A request without statements is two round trips, session settings included."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), session={"timezone": "Asia/Tokyo"})
    for _ in range(7):  # until the kit's statements are prepared
        with engine.scope(transaction=False) as scope:
            assert scope.connection.info.parameter_status("TimeZone") == "Asia/Tokyo"
    with proxy.counting() as traffic, engine.scope(transaction=False) as scope:
        assert scope.connection.info.parameter_status("TimeZone") == "Asia/Tokyo"

    assert traffic.flights == 2


@pytest.mark.parametrize("kind", [True, False])
def test_session_restored(make_engine: MakeEngine, superuser: psycopg.Connection[Any], kind: bool) -> None:
    """Every request starts from the settings of ``session``, whatever the one before did."""
    superuser.execute("drop role if exists tenant; create role tenant; grant tenant to app")
    engine = make_engine(session={"timezone": "Asia/Tokyo", "app.tenant": "o'hara", "role": "tenant"})
    for _ in range(12):  # the ordinary request is planned once and for all
        with engine.scope(transaction=kind) as scope:
            conn = scope.connection
            assert conn.execute(SETTINGS).fetchone() == ("Asia/Tokyo", "o'hara", "tenant")
            conn.execute("set timezone = 'UTC'; set app.tenant = 'other'; reset role")

    assert engine.stats.connects == 1


def test_session_role_reaps(make_engine: MakeEngine, fleet: str, superuser: psycopg.Connection[Any]) -> None:
    """An engine whose sessions start from a role without rights still sees and ends those of its fleet."""
    superuser.execute("drop role if exists tenant; create role tenant; grant tenant to app")
    sleeper = make_engine(strategy="none")
    with sleeper.request() as conn:
        conn.execute("select 1")
    engine = make_engine(
        session={"role": "tenant"}, strategy="minimum_idle_time", min_idle_time=0.0, conn_utilization=0.0, census_ttl=0
    )

    def ends_sleeper() -> bool:
        with engine.scope(transaction=False) as scope:
            scope.connection.execute("select 1")
        return len(sessions(superuser, fleet)) < 2

    assert eventually(ends_sleeper)


def test_session_unknown_role(make_engine: MakeEngine) -> None:
    """What the server refuses is told, in the server's words, and is not taken for a failure of the kit's own work."""
    engine = make_engine(session={"role": "nobody"})
    with pytest.raises(psycopg.Error, match="nobody"):
        engine.connect()
    assert engine.stats.maintenance_failures == 0


@pytest.mark.parametrize("bad", ["timezone=UTC", {"time zone": "UTC"}, {"timezone": 1}, {"timezone": "a\\b"}])
def test_session_bad(make_engine: MakeEngine, bad: Any) -> None:
    """What is no setting's name or text is refused, and not shown."""
    with pytest.raises(SettingsError, match=r"session=a \w+ that is not shown"):
        make_engine(session=bad)


def test_transaction_false_isolation(make_engine: MakeEngine) -> None:
    """The connection's own isolation level is put back after the request, as any of psycopg's attributes."""
    engine = make_engine()
    with engine.scope(transaction=False) as scope:
        scope.connection.isolation_level = IsolationLevel.SERIALIZABLE
    with engine.scope(transaction=False) as scope:
        assert scope.connection.isolation_level is None
