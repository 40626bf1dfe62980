"""What an engine tells of its work: every step has an event, with durations and counts that are right."""

from __future__ import annotations

import os
import threading
from typing import Any, TypeVar

import psycopg
import pytest
from proxy import Proxy
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import eventually, in_child

from serverless_pg_kit import AcquireTimeout, CommitUnknown, ConnectRejected, Engine, TransactionFailed
from serverless_pg_kit.clock import Clock
from serverless_pg_kit.events import (
    Cancelled,
    Closed,
    Committed,
    Connected,
    Down,
    Event,
    GaveUp,
    MaintenanceFailed,
    NotCommitted,
    Oversized,
    Refused,
    Released,
    Restarted,
    Reused,
    Waited,
)
from serverless_pg_kit.stats import Stats
from serverless_pg_kit.testing import PostgresServer

E = TypeVar("E", bound=Event)


class Steps:
    """Clocks that go on by `step` each time that they are read."""

    def __init__(self, step: float) -> None:
        self._now = 1e9
        self._step = step

    def drive(self, engine: Engine) -> None:
        """Let `engine` live by these clocks; to be called before its first request."""
        engine._clock = Clock(monotonic=self.read, wall=self.read, sleep=self.move)
        engine._start()

    def read(self) -> float:
        """Return the time, which never stands still."""
        self._now += self._step
        return self._now

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


def only(kind: type[E], heard: list[Event]) -> E:
    """Return the one event of this kind."""
    [event] = [event for event in heard if isinstance(event, kind)]
    return event


def test_a_request_tells_what_it_took(make_engine: Any) -> None:
    """How long connecting took, how long the connection was used, how long the end took; then that it was reused."""
    heard: list[Event] = []
    engine = make_engine(on_event=heard.append, census_ttl=3600, hold_warning=None)
    Steps(0.001).drive(engine)
    for pause in (5.0, 7.0):
        with engine.request():
            engine._clock.sleep(pause)
        engine._clock.sleep(3.0)
    connected, reused = only(Connected, heard), only(Reused, heard)
    assert connected.attempts == 1
    assert 0 < connected.connecting < connected.seconds < 1
    assert 0 < reused.seconds < 1
    assert 3 < reused.idle < 4
    used = [event for event in heard if isinstance(event, Released)]
    assert [int(event.seconds) for event in used] == [5, 7]
    assert all(event.kept for event in used)
    assert all(0 < event.seconds < 1 for event in heard if isinstance(event, Committed))
    assert engine.stats.connect_seconds == connected.seconds


@pytest.mark.parametrize(("processes", "ceiling", "told"), [("10", 100, 0), ("10", 99, 1), (None, 1, 0)])
def test_too_many_processes_are_told_once(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch, processes: str | None, ceiling: int, told: int
) -> None:
    """Processes of one container that could take more than the server has are told of; with numbers, and once."""
    if processes is not None:
        monkeypatch.setenv("AWS_LAMBDA_MAX_CONCURRENCY", processes)
    heard: list[Event] = []
    engine = make_engine(on_event=heard.append, max_size=10, max_connections=ceiling, census_ttl=0)
    for _ in range(3):
        with engine.request():
            pass

    expected = [Oversized(processes=10, max_size=10, ceiling=ceiling)] * told
    assert [event for event in heard if isinstance(event, Oversized)] == expected


def test_closed_connection_tells_its_age(make_engine: Any) -> None:
    """A connection says at its end for how long it was open."""
    heard: list[Event] = []
    engine = make_engine(on_event=heard.append)
    Steps(0.001).drive(engine)
    with engine.request():
        engine._clock.sleep(60.0)
    engine.close()
    closed = only(Closed, heard)
    assert closed.reason == "the engine was closed"
    assert 60 < closed.seconds < 61


def test_waiting_in_line_is_told(make_engine: Any) -> None:
    """A request that has to wait for another one's connection says for how long."""
    heard: list[Event] = []
    engine = make_engine(on_event=heard.append, max_size=1)
    served = threading.Thread(target=lambda: (engine.connect(), engine.clean()))
    engine.connect()
    served.start()
    assert eventually(lambda: engine.stats.waiting == 1)
    engine.clean()
    served.join()
    assert only(Waited, heard).seconds > 0
    assert (engine.stats.waits, engine.stats.waiting) == (1, 0)


def test_no_turn_is_told(make_engine: Any) -> None:
    """A request that waits in vain for another one's connection hears an error, the listeners an event."""
    heard: list[Event] = []
    engine = make_engine(on_event=heard.append, max_size=1)
    with engine.request(), pytest.raises(AcquireTimeout) as caught, engine.request(join=False, deadline=0.05):
        raise AssertionError("not served")
    told = only(GaveUp, heard)
    assert (told.error, told.attempts) == ("AcquireTimeout", 0)
    assert told.seconds >= caught.value.waited > 0.04
    assert engine.stats.failures == 1
    assert engine.stats.failure_seconds == told.seconds


def test_refusal_for_good_is_told(make_engine: Any, server: PostgresServer) -> None:
    """An attempt says how long it took to fail, the request how long it took to give up."""
    heard: list[Event] = []
    params = conninfo_to_dict(server.dsn) | {"dbname": "nowhere"}
    engine = make_engine(conninfo=make_conninfo("", **params), on_event=heard.append)
    with pytest.raises(ConnectRejected):
        engine.connect()
    told = only(GaveUp, heard)
    assert (told.error, told.attempts) == ("ConnectRejected", 1)
    assert 0 < only(Refused, heard).seconds <= told.seconds


def test_each_attempt_tells_its_own_time(engines: Any) -> None:
    """The pauses between attempts, and the attempts before, do not count."""
    heard: list[Event] = []
    engine = engines(conninfo="host=127.0.0.1 port=1", on_event=heard.append, max_retries=3)
    Steps(0.001).drive(engine)
    with pytest.raises(AcquireTimeout):
        engine.connect()
    times = [event.seconds for event in heard if isinstance(event, Refused)]
    assert len(times) == 4
    assert max(times) < 0.02  # a pause alone would be longer: the clock sleeps in steps of the back-off
    assert only(GaveUp, heard).seconds > sum(times)


@pytest.mark.parametrize(("down_ttl", "times"), [(8, 1), (0, 0)])
def test_server_that_is_down_is_told_once(engines: Any, down_ttl: float, times: int) -> None:
    """Requests fail fast from now on, for as long as the event says; with ``down_ttl=0`` they never do."""
    heard: list[Event] = []
    engine = engines(conninfo="host=127.0.0.1 port=1", on_event=heard.append, max_wait=1, down_ttl=down_ttl)
    Steps(0.0001).drive(engine)
    for _ in range(2):
        with pytest.raises(AcquireTimeout):
            engine.connect()
    told = [event.seconds for event in heard if isinstance(event, Down)]
    assert len(told) == engine.stats.downs == times
    assert all(down_ttl / 2 <= seconds <= down_ttl * 1.5 for seconds in told)


@pytest.mark.parametrize(
    ("statements", "error", "code"),
    [
        (["insert into ledger values (1)", "insert into ledger values (1)"], psycopg.errors.UniqueViolation, "23505"),
        (["select 1 / 0"], TransactionFailed, None),
    ],
)
def test_end_without_commit_is_told(
    make_engine: Any, ledger: str, statements: list[str], error: type[Exception], code: str | None
) -> None:
    """Whatever error a request hears of in place of its commit, listeners hear of its class, too."""
    heard: list[Event] = []
    engine = make_engine(on_event=heard.append)

    def body() -> None:
        with engine.request() as conn:
            try:
                for statement in statements:
                    conn.execute(statement)
            except psycopg.errors.DivisionByZero:
                pass

    with pytest.raises(error):
        body()
    told = only(NotCommitted, heard)
    assert (told.error, told.code) == (error.__name__, code)
    assert (engine.stats.commits, engine.stats.commit_failures) == (0, 1)


def test_unknown_commit_is_told(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """The one error that nobody may overlook."""
    heard: list[Event] = []
    engine = make_engine(conninfo=proxy.reroute(server.dsn), on_event=heard.append)
    with pytest.raises(CommitUnknown), engine.request(deadline=0.2):
        proxy.hush()
    assert only(NotCommitted, heard).error == "CommitUnknown"
    assert not only(Released, heard).kept


def test_statement_cancelled_at_the_deadline_is_told(make_engine: Any) -> None:
    """What began late in a request is cancelled by the client, and that is told."""
    heard: list[Event] = []
    engine = make_engine(on_event=heard.append)
    with pytest.raises(psycopg.OperationalError) as caught, engine.request(deadline=0.8) as conn:
        conn.execute("select pg_sleep(0.4)")
        conn.execute("select pg_sleep(5)")
    # From 17 on the server ends the session a quarter of a second later, and a client that is busy may be even later.
    cancelled = isinstance(caught.value, psycopg.errors.QueryCanceled)
    assert sum(isinstance(event, Cancelled) for event in heard) == engine.stats.cancels == cancelled


def test_maintenance_that_fails_again_is_counted_and_not_told(make_engine: Any) -> None:
    """The log of a fleet does not fill with the same complaint, but the number is there."""
    heard: list[Event] = []
    calls: list[None] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        calls.append(None)
        conn.execute("select 1 / %s", [len(calls) % 2])  # fails every second time: after the reset
        conn.commit()

    engine = make_engine(on_event=heard.append, configure=configure)
    for _ in range(3):
        engine.connect()
        engine.clean()
    assert only(MaintenanceFailed, heard).stage == "close"
    assert engine.stats.maintenance_failures == 3


def test_forked_child_tells_and_counts_its_own(make_engine: Any) -> None:
    """A child begins at zero, leaves the parent's connections to it, and says how many those are."""
    heard: list[Event] = []
    engine = make_engine(on_event=heard.append)
    engine.connect()
    engine.clean()
    reader, writer = os.pipe()

    def child() -> None:
        assert engine.stats == Stats()
        heard.clear()
        engine.connect()
        engine.clean()
        assert heard[0] == Restarted("fork", 1)
        os.write(writer, f"{engine.stats.connects} {engine.stats.restarts}".encode())

    in_child(child)
    assert os.read(reader, 20) == b"1 1"
    os.close(reader)
    os.close(writer)
    assert (engine.stats.connects, engine.stats.restarts) == (1, 0)
