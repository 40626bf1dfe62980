"""A hot standby: nothing of what the kit sends at the edges of a request is refused by a server in recovery."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from replicas import replicas, standby_dsn
from support import eventually, server_versions

from serverless_pg_kit import Engine
from serverless_pg_kit.events import Event, Leased
from serverless_pg_kit.statements import GUARD_KEY


@pytest.fixture(scope="module", params=server_versions())
def standby(request: pytest.FixtureRequest) -> Iterator[str]:
    """The connection string of a standby that follows its primary, for the ordinary role."""
    with replicas(request.param) as (primary, replica):
        yield standby_dsn(primary, replica)


@pytest.fixture
def make_reader(engines: Any, standby: str) -> Any:
    """Make engines on the standby."""
    return functools.partial(engines, conninfo=standby)


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("deadline", [None, 60.0])
def test_requests_are_served_by_a_standby(make_reader: Any, deadline: float | None, autocommit: bool) -> None:
    """With guard, time-outs, lease and reset, more often than the kit waits before it prepares its statements."""
    events: list[Event] = []
    engine = make_reader(lease=7.0, max_connections=10_000, autocommit=autocommit, on_event=events.append)
    held = "select count(*) from pg_locks where locktype = 'advisory' and classid = %s and pid = pg_backend_pid()"
    for _ in range(8):
        with engine.request(deadline=deadline) as conn:
            assert conn.execute("select pg_is_in_recovery(), count(*) from goods").fetchone() == (True, 2)
            assert conn.execute(held, [GUARD_KEY]).fetchone() == (1,)
    assert [event.seconds for event in events if isinstance(event, Leased)] == [7.0]
    assert (engine.stats.connects, engine.stats.maintenance_failures) == (1, 0)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_state_does_not_reach_the_next_request_on_a_standby(make_reader: Any, ending: str) -> None:
    """What a request there can leave behind is settings, locks, cursors and prepared statements."""
    engine = make_reader()
    for _ in range(8):
        with engine.scope() as scope:
            conn = scope.connection
            assert conn.execute("show work_mem").fetchone() != ("7MB",)
            assert conn.execute("select count(*) from pg_locks where objid = 42").fetchone() == (0,)
            assert conn.execute("select count(*) from pg_cursors where name = 'c'").fetchone() == (0,)
            conn.execute("set work_mem = '7MB'")
            conn.execute("select pg_advisory_lock(42)")
            conn.execute("declare c cursor with hold for select 1")
            if ending == "rollback":
                scope.fail()
    assert (engine.stats.connects, engine.stats.maintenance_failures) == (1, 0)


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_write_on_a_standby_is_the_callers_error(make_reader: Any, deadline: float | None) -> None:
    """It hears what the server says; its connection is closed, because the next one may find the primary. Others, which
    were made to this standby as well, are kept: they may serve those who read."""
    engine = make_reader()
    with engine.request(), engine.request(join=False):
        pass
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), engine.request(deadline=deadline) as conn:
        conn.execute("insert into goods values ('sugar')")
    assert engine._slots.idle == 1
    with engine.request() as conn:
        assert conn.execute("select count(*) from goods").fetchone() == (2,)
    assert engine.stats.connects == 2


def test_census_of_a_standby(make_reader: Any) -> None:
    """It counts the standby's own sessions, on demand and at the end of each request."""
    engine = make_reader(census_ttl=0)
    assert engine.census().fleet_used == 1
    with engine.request(), engine.request(join=False):
        assert engine.census().fleet_used == 3
    assert engine.connect().execute("select 1").fetchone() == (1,)
    assert engine.clean().census is not None
    assert engine.stats.maintenance_failures == 0


def serve(engine: Engine) -> tuple[int, ...]:
    """Serve a request; return the pids of those that its end has ended."""
    engine.connect().execute("select 1")
    return engine.clean().killed


def test_room_is_made_on_a_standby(make_reader: Any) -> None:
    """A cleaner is elected there as well, and ends who idles for long."""
    sleeper = make_reader(strategy="none")
    serve(sleeper)
    pid = sleeper._slots._idle[0].pid
    cleaner = make_reader(max_connections=2, conn_utilization=0.1, min_idle_time=0.1, census_ttl=0.05)
    killed: list[int] = []

    def clean() -> bool:
        killed.extend(serve(cleaner))
        return bool(killed)

    assert eventually(clean)
    assert killed == [pid]
    assert cleaner.stats.maintenance_failures == 0
