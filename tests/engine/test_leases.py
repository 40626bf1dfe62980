"""Leases: the server itself ends what sleeps for too long, and no request ever meets that end."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from proxy import Proxy
from support import eventually, sessions

from serverless_pg_kit import Engine
from serverless_pg_kit.clock import Clock
from serverless_pg_kit.decisions.deadline import timeout_names
from serverless_pg_kit.events import Event, Expired, Leased, Lost
from serverless_pg_kit.slots import Slot
from serverless_pg_kit.testing import PostgresServer

PLENTY = 10_000
"""A ceiling under which any number of sessions leaves room."""


def at_rest(engine: Engine) -> int:
    """Return the lease in milliseconds (0: none) that is in force in the engine's sleeping session itself."""
    [idle] = engine._slots._idle
    result = idle.conn.pgconn.exec_(b"select setting from pg_settings where name = 'idle_session_timeout'")
    value = result.get_value(0, 0)
    assert value is not None
    return int(value)


def backend(engine: Engine, **names: Any) -> int:
    """Serve a request; return the pid of its backend."""
    with engine.request(**names) as conn:
        return int(conn.execute("select pg_backend_pid()").fetchone()[0])  # type: ignore[index]


def wait_until_idle_for(superuser: psycopg.Connection[Any], pid: int, seconds: float) -> None:
    """Wait until session `pid` has had nothing to do for `seconds`."""
    query = "select state_change < clock_timestamp() - make_interval(secs => %s) from pg_stat_activity where pid = %s"
    assert eventually(lambda: superuser.execute(query, [seconds, pid]).fetchone() == (True,))


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("deadline", [None, 5.0, 3600.0])
def test_connection_sleeps_with_a_lease(
    make_engine: Any, reset: bool, autocommit: bool, deadline: float | None
) -> None:
    """After every request, however it was made and ended, the session has the lease and no other."""
    engine = make_engine(lease=7.0, max_connections=PLENTY, reset=reset, autocommit=autocommit)
    for _ in range(8):  # more often than the kit waits before it prepares its own statements
        backend(engine, deadline=deadline)
        assert at_rest(engine) == 7000
    with pytest.raises(ZeroDivisionError), engine.request(deadline=deadline) as conn:
        conn.execute("select 1")
        raise ZeroDivisionError
    assert at_rest(engine) == 7000
    with engine.scope(deadline=deadline) as scope:
        scope.connection.execute("set idle_session_timeout = '1h'" if reset else "select 1")
    assert at_rest(engine) == 7000
    assert engine.stats.connects == 1


def test_lease_is_five_minutes_by_default(make_engine: Any) -> None:
    """With room a container may sleep that long; then the database may, too."""
    engine = make_engine(max_connections=PLENTY)
    backend(engine)
    assert at_rest(engine) == 300_000


@pytest.mark.parametrize("strategy", ["minimum_idle_time", "ranked", "none"])
def test_other_strategies_set_no_lease(make_engine: Any, strategy: str) -> None:
    """Who chose to have sessions ended by others, or by nobody, has none that end by themselves."""
    engine = make_engine(lease=0.001, strategy=strategy)
    for _ in range(8):
        backend(engine, deadline=30)
        assert at_rest(engine) == 0
    assert (engine.stats.connects, engine.stats.leases, engine.stats.expirations) == (1, 0, 0)


def test_change_of_the_lease_is_told_once(make_engine: Any) -> None:
    """The event says how long and why, and not again while nothing changes."""
    events: list[Event] = []
    engine = make_engine(lease=7.0, max_connections=PLENTY, on_event=events.append)
    pids = [backend(engine) for _ in range(3)]
    assert [event for event in events if isinstance(event, Leased)] == [Leased(pids[0], 7.0, "there is room")]


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("deadline", [None, 30.0])
@pytest.mark.parametrize("prepared", [0, 6])
def test_short_lease_does_not_end_a_request_that_pauses(
    make_engine: Any, superuser: Any, reset: bool, deadline: float | None, prepared: int
) -> None:
    """Between two of its own transactions a request may pause for longer than its connection may sleep."""
    engine = make_engine(lease=0.25, max_connections=PLENTY, reset=reset)
    for _ in range(1 + prepared):
        backend(engine)
    with engine.request(deadline=deadline) as conn:
        conn.execute("select 1")
        conn.commit()
        wait_until_idle_for(superuser, conn.info.backend_pid, 0.5)
        assert conn.execute("select 1").fetchone() == (1,)
    assert at_rest(engine) == 250


def test_lease_reaches_beyond_the_deadline_and_no_further(make_engine: Any) -> None:
    """A container that freezes in mid-request, between two transactions, leaves nothing for longer than that."""
    engine = make_engine(lease=0.25, max_connections=PLENTY)
    backend(engine)
    query = "select extract(epoch from current_setting('idle_session_timeout')::interval)"
    with engine.scope(deadline=20) as scope:
        [seconds] = scope.connection.execute(query).fetchone()
        assert scope.deadline.remaining() < seconds <= 21
    with engine.request() as conn:
        assert conn.execute(query).fetchone() == (0,)


def test_long_lease_is_not_touched_by_a_short_request(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """What is long enough already is not set anew at every request."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), lease=300.0, max_connections=PLENTY)
    backend(engine, deadline=20)
    with proxy.counting() as traffic:
        backend(engine, deadline=20)
    opening = next(query for query in traffic.queries if "statement_timeout" in query)
    assert "idle_session_timeout" not in opening


@pytest.mark.parametrize("autocommit", [True, False])
def test_lease_of_zero_keeps_nothing(make_engine: Any, superuser: Any, autocommit: bool) -> None:
    """Every request connects, and in between the server holds no session of this container."""
    engine = make_engine(lease=0, max_connections=PLENTY, autocommit=autocommit)
    for count in (1, 2, 3):
        engine.connect().execute("select 1")
        assert engine.clean().decision == "closed"
        assert (engine.stats.open, engine.stats.connects) == (0, count)
        assert eventually(lambda: not sessions(superuser, engine.settings.application_name))


def test_autocommit_keeps_the_long_lease(make_engine: Any) -> None:
    """Nothing tells the server when such a request begins, so the lease is the same in it, whatever the deadline."""
    engine = make_engine(autocommit=True, max_connections=PLENTY)
    backend(engine)
    for deadline in (None, 5.0, 3600.0):
        with engine.request(deadline=deadline) as conn:
            assert conn.execute("show idle_session_timeout").fetchone() == ("5min",)


@pytest.mark.parametrize("deadline", [None, 30.0])
def test_tight_lease_does_not_end_an_autocommit_request_that_pauses(
    make_engine: Any,
    server: PostgresServer,
    superuser: Any,
    monkeypatch: pytest.MonkeyPatch,
    deadline: float | None,
) -> None:
    """Nothing tells the server when such a request begins, so its lease stays long, however little room there is."""
    monkeypatch.setattr("serverless_pg_kit.decisions.lease.TIGHT_LEASE", 1.5)
    engine = make_engine(autocommit=True, max_connections=6, conn_utilization=0.1)
    with psycopg.connect(server.dsn):
        with engine.request() as conn:
            conn.execute("select 1")
        with engine.request(deadline=deadline) as conn:
            conn.execute("select 1")
            lives = "select clock_timestamp() - state_change < '1.6 s' from pg_stat_activity where pid = %s"
            assert eventually(lambda: superuser.execute(lives, [conn.info.backend_pid]).fetchone() != (True,))
            assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.timeout(600)  # a slow machine takes long for so many connects
def test_leases_that_end_all_the_time_hurt_nobody(make_engine: Any) -> None:
    """Requests that come just when the server ends their connection are served all the same.

    The engine's own clock stands still, as in a container that was frozen: it does not know that the lease is over.
    """
    events: list[Event] = []
    engine = make_engine(lease=0.003, max_connections=PLENTY, on_event=events.append)
    engine._clock = Clock(wall=lambda: 1e9)
    engine._start()
    dice = random.Random(20)
    for number in range(500):
        with engine.request() as conn:
            assert conn.execute("select %s::int", [number]).fetchone() == (number,)
        time.sleep(dice.random() * 0.006)
    ends = [event for event in events if isinstance(event, Expired | Lost)]
    assert 50 < len(ends) == engine.stats.connects - 1 < 500


FROZEN = """
    import contextlib, sys
    from serverless_pg_kit import Engine

    conninfo, fleet, lease, count = sys.argv[1:]
    engines = [
        Engine(conninfo=conninfo, application_name=fleet, lease=float(lease), max_connections=10_000)
        for _ in range(int(count))
    ]

    def serve_all(word):
        with contextlib.ExitStack() as requests:
            for engine in engines:
                requests.enter_context(engine.request()).execute("select 1")
            print(word, flush=True)
            sys.stdin.readline()

    serve_all("busy")
    print("asleep", flush=True)
    sys.stdin.readline()
    serve_all("busy again")
    print(sum(engine.stats.connects for engine in engines), flush=True)
"""


class Containers:
    """A process with many engines: it serves a request on each, sleeps, and can be frozen."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hear(self) -> str:
        """Return what it says next."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go_on(self) -> None:
        """Let it take its next step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def freeze(self) -> None:
        """Let it stand still from now on."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it live again."""
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def containers(server: PostgresServer, fleet: str, lease: float, count: int) -> Iterator[Containers]:
    """Run `count` engines in a process of their own."""
    command = [sys.executable, "-c", textwrap.dedent(FROZEN), server.dsn, fleet, str(lease), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Containers(process)
        finally:
            process.kill()


def test_frozen_fleet_disappears_by_itself(server: PostgresServer, superuser: Any) -> None:
    """Fifty containers that freeze with their connections are gone after their lease, with nobody's help; when they
    are called again, all of them are served."""
    said = "terminating connection due to idle-session timeout"
    before = server.log.count(said)
    with containers(server, "frozen", lease=1.0, count=50) as fleet:
        assert fleet.hear() == "busy"
        assert len(sessions(superuser, "frozen")) == 50
        fleet.go_on()
        assert fleet.hear() == "asleep"
        fleet.freeze()
        assert eventually(lambda: not sessions(superuser, "frozen"))
        assert eventually(lambda: server.log.count(said) == before + 50)
        fleet.thaw()
        fleet.go_on()
        assert fleet.hear() == "busy again"
        assert len(sessions(superuser, "frozen")) == 50
        fleet.go_on()
        assert fleet.hear() == "100"


@pytest.fixture
def older_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every connection report a server of version 13, the last one without leases."""

    class Older(Slot):
        def __init__(self, *values: Any, **names: Any) -> None:
            super().__init__(*values, **names)
            self.server_version = 130000
            self.timeout_names = timeout_names(self.server_version)

    monkeypatch.setattr("serverless_pg_kit.acquire_base.Slot", Older)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("autocommit", [True, False])
def test_servers_before_14_are_not_asked_for_what_they_lack(
    make_engine: Any, proxy: Proxy, server: PostgresServer, older_server: None, reset: bool, autocommit: bool
) -> None:
    """No lease, and nothing else that came later, is sent there; requests, deadlines and census work."""
    engine = make_engine(
        conninfo=proxy.reroute(server.dsn), lease=0.001, census_ttl=0, reset=reset, autocommit=autocommit
    )
    with proxy.counting() as traffic:
        for _ in range(8):
            with engine.request(deadline=30) as conn:
                assert conn.execute("show statement_timeout").fetchone() != ("0",)
        engine.census()
    sent = "\n".join(traffic.queries)
    assert "statement_timeout" in sent
    for name in ("idle_session_timeout", "client_connection_check_interval", "transaction_timeout"):
        assert name not in sent
    assert at_rest(engine) == 0
    assert (engine.stats.connects, engine.stats.maintenance_failures, engine.stats.leases) == (1, 0, 0)


def test_servers_before_14_have_idle_sessions_ended_instead(
    make_engine: Any, superuser: Any, older_server: None
) -> None:
    """Where room is short, all sessions of the fleet that idle for long are ended, those in use are not."""
    idle, busy = make_engine(max_connections=PLENTY), make_engine(max_connections=PLENTY)
    sleeper = backend(idle)
    cleaner = make_engine(max_connections=2, conn_utilization=0.1, min_idle_time=0.1)
    with busy.request() as conn:
        conn.commit()  # idle for the server, and still in a request
        wait_until_idle_for(superuser, sleeper, 0.2)
        wait_until_idle_for(superuser, conn.info.backend_pid, 0.2)
        cleaner.connect()
        assert cleaner.clean().killed == (sleeper,)
        assert conn.execute("select 1").fetchone() == (1,)
