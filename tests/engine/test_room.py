"""Room: a surplus is ended and no more, once in an interval by one of the fleet, and nobody starves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from support import eventually, kill

from serverless_pg_kit import Engine, TooManyConnections
from serverless_pg_kit.clock import Clock
from serverless_pg_kit.decisions.cleaning import CleanReport, surplus
from serverless_pg_kit.events import Counted, Event, Paused
from serverless_pg_kit.statements import ELECTION_KEY
from serverless_pg_kit.testing import PostgresServer

LINE = 0.05
"""Of a ceiling of 100: eight peers and what else there is are a surplus."""

PLENTY = 10_000
"""A ceiling under which any number of sessions leaves room."""

ENDLESS = 1e9
"""Seconds of an interval that does not end while a test runs: intervals are counted from 1970 on."""


def serve(engine: Engine) -> CleanReport:
    """Serve a request; return what its end did about room."""
    engine.connect().execute("select 1")
    return engine.clean()


def idle_for(superuser: psycopg.Connection[Any], fleet: str, seconds: float) -> list[int]:
    """Return the pids of the sessions of `fleet` that idle for `seconds`, the longest idle first."""
    query = """select pid from pg_stat_activity where application_name = %s and state = 'idle'
               and state_change < clock_timestamp() - make_interval(secs => %s) order by state_change"""
    return [pid for (pid,) in superuser.execute(query, [fleet, seconds])]


def sessions_of_clients(server: PostgresServer) -> int:
    """Return how many sessions there are, the one that asks not counted."""
    with psycopg.connect(server.superuser_dsn, autocommit=True) as conn:
        query = (
            "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        count = conn.execute(query).fetchone()
        assert count is not None
        return int(count[0])


@pytest.fixture
def sleepers(make_engine: Any, server: PostgresServer, superuser: Any) -> Callable[[int], list[int]]:
    """Let engines of the fleet serve a request and sleep for longer than `min_idle_time`; return their pids.

    Begins when no session of an earlier test is there or on its way out: it would count.
    """
    superuser.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datid is not null and pid <> pg_backend_pid()"
    )
    assert eventually(lambda: sessions_of_clients(server) == 1)

    def make(count: int) -> list[int]:
        engines = [make_engine(strategy="none", conn_utilization=1.0) for _ in range(count)]
        for engine in engines:
            serve(engine)
        pids = [engine._slots._idle[0].pid for engine in engines]
        fleet = engines[0].settings.application_name
        assert eventually(lambda: set(pids) <= set(idle_for(superuser, fleet, 0.1)))
        return pids

    return make


@pytest.fixture
def cleaner(make_engine: Any) -> Callable[..., Engine]:
    """Make an engine with the strategy ``lease`` that finds the server crowded, but not full."""

    def make(**names: Any) -> Engine:
        common = {"conn_utilization": LINE, "max_connections": 100, "min_idle_time": 0.1, "census_ttl": ENDLESS}
        engine: Engine = make_engine(**common | names)
        return engine

    return make


def test_only_the_surplus_is_ended_longest_idle_first(sleepers: Any, cleaner: Any) -> None:
    """As many as lie above the line, in the order in which they fell asleep; the others stay."""
    pids = sleepers(8)
    report = serve(cleaner())
    assert report.census is not None
    excess = surplus(report.census, LINE)
    assert 0 < excess < 8
    assert list(report.killed) == pids[:excess]
    assert report.decision == "kept"


def test_max_kills_cuts_the_surplus(sleepers: Any, cleaner: Any) -> None:
    """One with `max_kills=1`, none with 0."""
    pids = sleepers(8)
    assert serve(cleaner(max_kills=0)).killed == ()
    assert serve(cleaner(max_kills=1)).killed == (pids[0],)


def test_those_used_lately_are_not_surplus(sleepers: Any, cleaner: Any) -> None:
    """`min_idle_time` holds for the surplus too; while there is any room, leases will make more."""
    sleepers(8)
    report = serve(cleaner(min_idle_time=60.0))
    assert (report.decision, report.killed) == ("kept", ())


def test_with_room_no_sleeper_is_ended(sleepers: Any, cleaner: Any) -> None:
    """However long they sleep."""
    sleepers(8)
    report = serve(cleaner(conn_utilization=0.8))
    assert (report.decision, report.killed) == ("kept", ())


@pytest.mark.parametrize("reset", [True, False])
def test_fleet_cleans_once_in_an_interval(sleepers: Any, cleaner: Any, superuser: Any, reset: bool) -> None:
    """Of ten engines that find the server crowded in the same interval, one cleans; it stays the elected one through
    its own further requests."""
    sleepers(8)
    first = cleaner(reset=reset)
    assert serve(first).killed
    sleepers(4)
    others = [cleaner() for _ in range(9)]
    for engine in others:
        assert serve(engine).killed == ()
        serve(first)
    assert first.stats.reapings == 1


def test_fleets_elect_their_own_cleaners(sleepers: Any, cleaner: Any, make_engine: Any, superuser: Any) -> None:
    """One fleet's cleaner keeps no other fleet from cleaning."""
    sleepers(8)
    other = make_engine(application_name="another fleet", strategy="none")
    serve(other)
    pid = other._slots._idle[0].pid
    assert eventually(lambda: idle_for(superuser, "another fleet", 0.1) == [pid])
    assert serve(cleaner()).killed
    killed: tuple[int, ...] = ()
    for _ in range(3):  # a cleaner that stands still for a second, on a busy machine, loses its connection
        killed = killed or serve(cleaner(application_name="another fleet")).killed
    assert killed == (pid,)


def test_killed_cleaner_hinders_nobody(sleepers: Any, cleaner: Any, superuser: Any) -> None:
    """A cleaner that dies makes way at once."""
    sleepers(8)
    first = cleaner()
    assert serve(first).killed
    sleepers(4)
    assert serve(cleaner()).killed == ()
    kill(superuser, first._slots._idle[0].pid)
    assert serve(cleaner()).killed


def test_frozen_cleaner_hinders_nobody_beyond_its_interval(sleepers: Any, cleaner: Any, superuser: Any) -> None:
    """One that freezes with its election keeps it, but in the next interval another one is elected.

    In autocommit a connection has one long lease: that of another might end, and its election with it, just then.
    """
    longest, *others = sleepers(8)
    frozen, other = (cleaner(census_ttl=1.0, max_kills=1, autocommit=autocommit) for autocommit in (True, False))
    assert serve(frozen).killed == (longest,)
    killed: list[int] = []

    def clean() -> bool:
        killed.extend(serve(other).killed)
        return bool(killed)

    assert eventually(clean)
    assert killed == others[:1]
    held = "select count(*) from pg_locks where locktype = 'advisory' and classid = %s and pid = %s"
    assert superuser.execute(held, [ELECTION_KEY, frozen._slots._idle[0].pid]).fetchone() == (1,)


def test_engine_yields_when_all_is_full_and_nobody_can_be_ended(sleepers: Any, cleaner: Any) -> None:
    """Then it gives up its own connection, so that somebody else is served; a sleeper is ended as well."""
    engine = cleaner(max_connections=1, census_ttl=0.05)
    report = serve(engine)
    assert (report.decision, report.killed) == ("yielded", ())
    assert (engine.stats.open, engine.stats.yields) == (0, 1)
    pids = sleepers(1)
    report = serve(engine)
    assert report.killed == tuple(pids)


@pytest.fixture
def small_server() -> Iterator[PostgresServer]:
    """A server with twenty slots for an ordinary role, which nobody else uses."""
    with PostgresServer(max_connections=23) as running:
        yield running


def test_headroom_serves_whoever_comes_at_once(
    engines: Any, small_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Function A froze with 80 % of the slots and long leases: four of B are served without being refused, and what
    they keep above the line is gone soon after."""
    monkeypatch.setattr("serverless_pg_kit.decisions.lease.TIGHT_LEASE", 1.0)
    for _ in range(16):
        serve(engines(conninfo=small_server.dsn, application_name="A"))
    assert sessions_of_clients(small_server) == 16
    functions = [engines(conninfo=small_server.dsn, application_name="B") for _ in range(4)]
    for function in functions:
        serve(function)
        assert function.stats.refusals == 0
    assert eventually(lambda: sessions_of_clients(small_server) == 16)


def test_full_server_serves_as_soon_as_a_lease_ends(engines: Any, small_server: PostgresServer) -> None:
    """Function A froze with all slots: one of B is served when the first lease is over, and not much later."""
    frozen = [
        engines(conninfo=small_server.dsn, application_name="A", max_connections=PLENTY, lease=1.0) for _ in range(20)
    ]
    for engine in frozen:
        engine.connect().execute("select 1")
    function = engines(conninfo=small_server.dsn, application_name="B", backoff_cap=0.2)
    with pytest.raises(TooManyConnections):
        engines(conninfo=small_server.dsn, application_name="B", max_wait=0).connect()
    started = time.monotonic()
    for engine in frozen:
        engine.clean()
    serve(function)
    assert 0.8 < time.monotonic() - started < 6.0
    assert function.stats.refusals > 0


@pytest.mark.parametrize("fleets", [1, 40])
def test_more_engines_than_slots_are_served_in_turn(engines: Any, small_server: PostgresServer, fleets: int) -> None:
    """Forty containers one after the other on twenty slots, none of them closed by hand: each is served soon, whether
    they are one fleet or strangers to each other."""
    made = [engines(conninfo=small_server.dsn, application_name=f"fleet {number % fleets}") for number in range(40)]
    for engine in made:
        started = time.monotonic()
        serve(engine)
        assert time.monotonic() - started < 5.0
    assert sum(engine.stats.connects for engine in made) == 40
    assert sessions_of_clients(small_server) <= 20


@pytest.mark.parametrize("size", [10, 40])
def test_fleet_of_any_size_asks_for_as_many_censuses(
    engines: Any, tall_server: PostgresServer, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minutes of requests, by a clock that the test moves: after the first ones of each container, ten and forty of
    them ask equally often. (The size above which a fleet asks less is set to ten, which a test server can hold.)"""
    monkeypatch.setattr("serverless_pg_kit.decisions.census.FLEET_SHARE", 10)
    now = [1e9]
    counts: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, Counted):
            counts.append(now[0])

    fleet = [engines(conninfo=tall_server.dsn, on_event=listen) for _ in range(size)]
    for engine in fleet:
        engine._clock = Clock(wall=lambda: now[0], monotonic=lambda: now[0])
        engine._start()
        serve(engine)
    assert len(counts) == size  # a new connection counts at once
    for _ in range(60):
        now[0] += 2.0
        for engine in fleet:
            serve(engine)
    late = [moment for moment in counts if moment > 1e9 + 60]
    assert 60 <= len(late) <= 120


@pytest.fixture(scope="module")
def tall_server() -> Iterator[PostgresServer]:
    """A server on which forty connections are few."""
    with PostgresServer(max_connections=100) as running:
        yield running


def test_census_on_demand_is_taken_whatever_others_do(make_engine: Any) -> None:
    """A request of another thread that counts in the same moment does not take its place."""
    engine = make_engine()
    engine.census()
    engine._history.census_at = float("inf")  # as after another's census
    assert engine.census().used >= 1


def test_who_gave_up_what_was_hard_to_come_by_lets_others_pass(make_engine: Any) -> None:
    """Where connecting takes long because many try, a container that had its turn does not line up again at once."""
    events: list[Event] = []
    engine = make_engine(max_connections=1, on_event=events.append)
    assert serve(engine).decision == "yielded"
    engine._history._latest_connect = 0.35
    serve(engine)
    [pause] = [event for event in events if isinstance(event, Paused)]
    assert 0.15 <= pause.seconds <= 0.45
    assert (engine.stats.pauses, engine.stats.connects) == (1, 2)


def test_dead_connection_is_replaced_without_a_pause(make_engine: Any, superuser: Any) -> None:
    """Who gave nothing up has nothing to wait for, however long its latest connect took."""
    engine = make_engine(max_connections=PLENTY)
    serve(engine)
    engine._history._latest_connect = 5.0
    kill(superuser, engine._slots._idle[0].pid)
    serve(engine)
    assert (engine.stats.pauses, engine.stats.connects) == (0, 2)


def test_container_that_knows_of_pressure_does_not_count_on_every_connection(make_engine: Any) -> None:
    """A census is dear to a new session: who was refused, and has counted a moment ago, goes by that for a while."""
    engine = make_engine(max_connections=1)
    serve(engine)
    engine._history.note_refusal()
    for censuses, ago in [(1, 0.0), (1, 6.0), (2, 6.0)]:
        engine._history._counted_at -= ago
        engine._history.census_at -= ago
        engine.retire()
        serve(engine)
        assert engine.stats.censuses == censuses
