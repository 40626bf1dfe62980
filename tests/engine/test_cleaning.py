"""Room: who is ended when it is short, who never is, and when an engine gives up its own connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support import eventually, kill, sessions

from serverless_pg_kit import Engine, Statements
from serverless_pg_kit.decisions.cleaning import AGE_FLOOR
from serverless_pg_kit.events import Counted, Event, MaintenanceFailed
from serverless_pg_kit.statements import GUARD_KEY
from serverless_pg_kit.testing import PostgresServer

Peers = Callable[..., list[Engine]]

CROWDED = 0.09
"""Of a ceiling of 100: ten peers are too many."""


@pytest.fixture
def peers(make_engine: Any) -> Peers:
    """Make engines that each hold one idle connection; their pids are in the order in which they became idle."""

    def make(count: int, **names: Any) -> list[Engine]:
        engines = [make_engine(**{"strategy": "none", "conn_utilization": 1.0} | names) for _ in range(count)]
        for engine in engines:
            engine.connect()
            engine.clean()
        return engines

    return make


@pytest.fixture
def cleaner(make_engine: Any) -> Callable[..., Engine]:
    """Make an engine that finds the server crowded."""

    def make(**names: Any) -> Engine:
        engine: Engine = make_engine(
            **{"conn_utilization": CROWDED, "max_connections": 100, "strategy": "minimum_idle_time"} | names
        )
        return engine

    return make


def rows_of(conn: psycopg.Connection[Any], message: str) -> list[Any]:
    """Return the rows of the last statement in `message`."""
    cursor = conn.execute(message.encode())
    while cursor.nextset():
        pass
    return cursor.fetchall()


def wait_until_idle_for(superuser: psycopg.Connection[Any], fleet: str, count: int, seconds: float) -> None:
    """Wait until `count` sessions of `fleet` have been idle for `seconds`."""
    query = """select count(*) from pg_stat_activity where application_name = %s and state = 'idle'
               and state_change < clock_timestamp() - make_interval(secs => %s)"""
    assert eventually(lambda: superuser.execute(query, [fleet, seconds]).fetchone() == (count,))


def test_those_idle_long_enough_are_ended(peers: Peers, cleaner: Any, superuser: Any) -> None:
    """Nine idle for longer than `min_idle_time` are ended, the tenth, just used, is not."""
    recent = peers(10)[-1]
    engine = cleaner(min_idle_time=1.0)
    fleet = engine.settings.application_name
    engine.connect()
    wait_until_idle_for(superuser, fleet, 10, 1.0)
    recent.connect()
    recent.clean()
    expected = set(sessions(superuser, fleet)) - {recent._slots._idle[0].pid, engine.connect().info.backend_pid}
    report = engine.clean()
    assert (report.decision, set(report.killed)) == ("kept", expected)
    assert len(expected) == 9
    assert report.census is not None
    assert report.census.fleet_used == 11
    assert eventually(lambda: len(sessions(superuser, fleet)) == 2)
    assert (engine.stats.killed, engine.stats.reapings) == (9, 1)


def test_max_kills_takes_the_longest_idle(peers: Peers, cleaner: Any, superuser: Any) -> None:
    """Five with `max_kills=5`, and those that were idle longest."""
    peers(10)
    engine = cleaner(max_kills=5)
    fleet = engine.settings.application_name
    wait_until_idle_for(superuser, fleet, 10, 0.5)
    longest = sessions(superuser, fleet)[:5]
    engine.connect()
    assert list(engine.clean().killed) == longest


def test_nobody_old_enough_makes_the_engine_give_up_its_own(peers: Peers, cleaner: Any, superuser: Any) -> None:
    """With `min_idle_time=60` none qualifies; the engine then closes its own connection."""
    peers(10)
    engine = cleaner(min_idle_time=60.0)
    engine.connect()
    report = engine.clean()
    assert (report.decision, report.killed) == ("yielded", ())
    assert engine.stats.open == 0
    assert eventually(lambda: len(sessions(superuser, engine.settings.application_name)) == 10)


def test_ranked_takes_all_longest_idle_first(peers: Peers, cleaner: Any, superuser: Any) -> None:
    """`ranked` ignores `min_idle_time`; only the floor that a connect takes holds."""
    peers(10)
    engine = cleaner(strategy="ranked", min_idle_time=60.0)
    fleet = engine.settings.application_name
    wait_until_idle_for(superuser, fleet, 10, AGE_FLOOR)
    order = sessions(superuser, fleet)
    engine.connect()
    assert list(engine.clean().killed) == order


def test_none_kills_nobody_but_yields(peers: Peers, cleaner: Any, superuser: Any) -> None:
    """The third strategy only ever gives up its own connection."""
    peers(10)
    engine = cleaner(strategy="none")
    wait_until_idle_for(superuser, engine.settings.application_name, 10, 0.5)
    engine.connect()
    assert engine.clean().decision == "yielded"
    assert eventually(lambda: len(sessions(superuser, engine.settings.application_name)) == 10)


def test_with_room_nothing_happens(peers: Peers, make_engine: Any, superuser: Any) -> None:
    """Idle sessions of any age stay as long as there is room."""
    peers(10)
    engine = make_engine(conn_utilization=0.8)
    wait_until_idle_for(superuser, engine.settings.application_name, 10, 0.5)
    engine.connect()
    report = engine.clean()
    assert (report.decision, report.killed) == ("kept", ())
    assert "there is room" in report.reason


def test_strangers_and_busy_sessions_are_never_touched(
    peers: Peers, cleaner: Any, superuser: Any, server: PostgresServer
) -> None:
    """Other names, other roles, other databases, open transactions and running statements are left alone."""
    superuser.execute("drop role if exists stranger")
    superuser.execute("create role stranger login superuser password 'x'")
    engine = cleaner(strategy="ranked")
    fleet = engine.settings.application_name
    peers(8, application_name="another fleet")
    busy = peers(1)[0]
    with ExitStack() as stack:
        stack.callback(superuser.execute, "drop role stranger")
        other_role = make_conninfo(server.dsn, user="stranger", password="x", application_name=fleet)
        stack.enter_context(psycopg.connect(other_role))
        other_database = make_conninfo(server.dsn, dbname="postgres", application_name=fleet)
        stack.enter_context(psycopg.connect(other_database))
        in_transaction = stack.enter_context(psycopg.connect(make_conninfo(server.dsn, application_name=fleet)))
        in_transaction.execute("select 1")
        stack.enter_context(busy.request())
        wait_until_idle_for(superuser, "another fleet", 8, AGE_FLOOR)
        time.sleep(AGE_FLOOR)  # the floor has to pass for the strangers of our name too
        engine.connect()
        report = engine.clean()
        assert (report.decision, report.killed) == ("yielded", ())
        assert in_transaction.execute("select 1").fetchone() == (1,)


def test_own_autocommit_connections_are_not_ended(peers: Peers, cleaner: Any, superuser: Any) -> None:
    """A connection that opens no exchange holds the guard from the start, so nobody ends it between statements."""
    peers(10, autocommit=True)
    engine = cleaner(strategy="ranked")
    wait_until_idle_for(superuser, engine.settings.application_name, 10, AGE_FLOOR)
    engine.connect()
    assert engine.clean().killed == ()


def test_reaper_takes_no_more_locks_than_victims(peers: Peers, make_engine: Any, superuser: Any) -> None:
    """The guards are tried for the chosen victims alone, whatever the planner thinks of the other sessions."""
    peers(6)
    engine = make_engine()
    fleet = engine.settings.application_name
    wait_until_idle_for(superuser, fleet, 6, AGE_FLOOR)
    with psycopg.connect(engine.settings.conninfo, application_name=fleet) as conn:
        reap = Statements().reap(f"'{fleet}'", AGE_FLOOR, 2, 0.0).replace("pg_terminate_backend(pid)", "pg_sleep(0)")
        assert len(rows_of(conn, reap)) == 2
        locks = "select count(*) from pg_locks where locktype = 'advisory' and classid = %s and pid = pg_backend_pid()"
        assert conn.execute(locks, [GUARD_KEY]).fetchone() == (2,)


def test_census_agrees_with_the_server(make_engine: Any, superuser: Any, server: PostgresServer) -> None:
    """An ordinary role counts other roles' sessions too, and the room is what it can really open."""
    engine = make_engine(max_size=100)
    engine.census()
    clients = "select count(*) from pg_stat_activity where backend_type = 'client backend'"
    assert eventually(lambda: superuser.execute(clients).fetchone() == (2,))  # the superuser's and the engine's
    census = engine.census()
    assert census.used == 2
    assert (census.role_limit, census.database_limit) == (None, None)
    with ExitStack() as stack:
        for _ in range(census.room):
            stack.enter_context(psycopg.connect(server.dsn))
        with pytest.raises(psycopg.OperationalError, match="reserved"):
            psycopg.connect(server.dsn)


def test_limits_of_role_and_database_count(make_engine: Any, superuser: Any) -> None:
    """ALTER ROLE and ALTER DATABASE limits cut the room."""
    superuser.execute("alter role app connection limit 7")
    superuser.execute("alter database app connection limit 5")
    try:
        census = make_engine().census()
        assert (census.role_limit, census.database_limit) == (7, 5)
        assert census.room == 5 - census.database_used
    finally:
        superuser.execute("alter role app connection limit -1")
        superuser.execute("alter database app connection limit -1")


def test_census_is_due_at_once_after_a_connect_and_then_rarely(make_engine: Any) -> None:
    """A fleet never fills the server unseen, and a quiet container asks seldom."""
    events: list[Event] = []
    engine = make_engine(on_event=events.append)
    for _ in range(5):
        engine.connect()
        engine.clean()
    assert len([event for event in events if isinstance(event, Counted)]) == 1


def test_census_ttl_of_zero_counts_every_time(make_engine: Any) -> None:
    """0 means every request."""
    engine = make_engine(census_ttl=0)
    for _ in range(3):
        engine.connect()
        assert engine.clean().census is not None


def test_failing_census_hurts_no_request_and_is_told_once(make_engine: Any) -> None:
    """Maintenance that the server refuses becomes one event; the requests and their resets go on."""

    class Broken(Statements):
        def census(self, fleet: str, pid: int) -> str:
            return "SELECT nothing_like_it()"

    events: list[Event] = []
    engine = make_engine(statements=Broken(), census_ttl=0, on_event=events.append)
    for _ in range(3):
        with engine.request() as conn:
            conn.execute("set work_mem = '7MB'")
    with engine.request() as conn:
        assert conn.execute("show work_mem").fetchone() != ("7MB",)
    assert len([event for event in events if isinstance(event, MaintenanceFailed)]) == 1
    assert engine.stats.connects == 1


def test_forbidden_kill_hurts_no_request(peers: Peers, cleaner: Any, superuser: Any) -> None:
    """A reaper the server refuses is reported, and the engine yields instead."""

    class Forbidden(Statements):
        def reap(self, fleet: str, min_idle_seconds: float, limit: int | None, interval: float) -> str:
            return "SELECT pg_terminate_backend(pid), pid FROM pg_stat_activity WHERE usename = 'postgres'"

    peers(10)
    events: list[Event] = []
    engine = cleaner(statements=Forbidden(), on_event=events.append)
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    [failed] = [event for event in events if isinstance(event, MaintenanceFailed)]
    assert failed.stage == "reap"
    assert engine.stats.yields == 1


def test_killed_engine_is_found_idle_again(peers: Peers, superuser: Any) -> None:
    """An engine whose connection was ended by another serves the next request unseen."""
    [engine] = peers(1)
    kill(superuser, *sessions(superuser, engine.settings.application_name))
    assert engine.connect().execute("select 1").fetchone() == (1,)
    assert engine.stats.losses == 1
