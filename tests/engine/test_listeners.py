"""A listener that raises, blocks or uses the engine itself does no harm beyond its own log line. (What one of an
`AsyncEngine` can do is in tests/aio.)"""

from __future__ import annotations

import gc
import logging
import threading
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import SYNC_ONLY, entries, eventually, kill, sessions

from serverless_pg_kit import AcquireTimeout, Engine, SettingsError
from serverless_pg_kit.events import (
    Closed,
    Committed,
    Connected,
    Counted,
    Event,
    Expired,
    GaveUp,
    Lost,
    PoolerDetected,
    Released,
    Reused,
    RolledBack,
)
from serverless_pg_kit.testing import PostgresServer


class Writer:
    """A listener that writes a row for each event, through the engine that it hears."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.deadline: float | None = None
        self.heard: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.heard.append(event)
        if self.engine is not None:
            with self.engine.request(deadline=self.deadline) as conn:
                conn.execute("insert into ledger values (%s)", [len(self.heard)])


def write(engine: Engine, entry: int) -> None:
    """Write one row in a request of its own, which then fails."""
    with engine.request() as conn:
        conn.execute("insert into ledger values (%s)", [entry])
        raise ValueError("mine")


@SYNC_ONLY
def test_listener_may_use_the_engine(make_engine: Any, superuser: Any, ledger: str) -> None:
    """What it does is a request of its own, committed whatever becomes of the one that it hears of."""
    writer = Writer()
    engine = writer.engine = make_engine(on_event=writer)
    for number in range(3):
        with pytest.raises(ValueError, match="mine"):
            write(engine, -number)
    assert entries(superuser) == list(range(1, len(writer.heard) + 1))
    assert {Connected, Reused, Released} <= {type(event) for event in writer.heard}
    assert engine.stats.in_use == 0
    writer.engine = None  # or it would open a connection to tell of the last one's end


@SYNC_ONLY
def test_listener_inside_a_scope_sees_no_request(make_engine: Any) -> None:
    """Neither while the request acquires its connection nor at its end is it the listener's."""
    seen: list[str] = []

    def look(event: Event) -> None:
        try:
            engine.connection  # noqa: B018 - touching it is the test
        except RuntimeError as error:
            seen.append(str(error))

    engine = make_engine(on_event=look)
    with engine.scope() as scope:
        scope.connection.execute("select 1")
        assert engine.connection is scope.connection
    assert len(seen) >= 3
    assert all("no request is open" in text for text in seen)


@SYNC_ONLY
def test_listener_that_finds_no_connection_harms_nobody(
    make_engine: Any, superuser: Any, ledger: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the only connection in use, a listener that wants one waits in vain, and only that is logged."""
    writer = Writer()
    engine = writer.engine = make_engine(on_event=writer, max_size=1)
    writer.deadline = 0.01
    with engine.request() as conn:
        conn.execute("insert into ledger values (-1)")
    assert -1 in entries(superuser)
    assert (engine.stats.commits > 0, engine.stats.in_use) == (True, 0)
    [failed, *_] = [record for record in caplog.records if "failed on Connected" in record.getMessage()]
    assert failed.exc_info is not None
    assert failed.exc_info[0] is AcquireTimeout
    writer.engine = None


def test_listener_that_raises_costs_its_log_line(
    make_engine: Any, superuser: Any, ledger: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests succeed, fail and are counted as if nobody listened."""

    def bad(event: Event) -> None:
        raise ValueError(f"mine {event}")

    engine = make_engine(on_event=bad)
    for number in range(3):
        with engine.request() as conn:
            conn.execute("insert into ledger values (%s)", [number])
    kill(superuser, *sessions(superuser, engine.settings.application_name))
    with engine.request() as conn:
        conn.execute("insert into ledger values (3)")
    assert entries(superuser) == [0, 1, 2, 3]
    assert (engine.stats.connects, engine.stats.commits, engine.stats.losses, engine.stats.in_use) == (2, 4, 1, 0)
    assert {record.levelno for record in caplog.records if "failed on" in record.getMessage()} == {logging.ERROR}


def test_slow_listener_delays_only_its_request(make_engine: Any) -> None:
    """While a listener of one request blocks, all others are served, also by the connection that was given back."""
    blocked, go_on = threading.Event(), threading.Event()

    def block(event: Event) -> None:
        if isinstance(event, Released) and threading.current_thread() is slow:
            blocked.set()
            assert go_on.wait(30)

    engine = make_engine(on_event=block, max_size=1)
    slow = threading.Thread(target=lambda: (engine.connect(), engine.clean()))
    slow.start()
    assert blocked.wait(30)
    for _ in range(3):
        with engine.request(deadline=10) as conn:
            conn.execute("select 1")
    assert (engine.stats.connects, engine.stats.in_use) == (1, 0)
    go_on.set()
    slow.join()


def test_slow_listener_of_a_request_in_line_keeps_nobody(make_engine: Any) -> None:
    """Also the listener of a request that gets no connection blocks nobody who does."""
    blocked, go_on = threading.Event(), threading.Event()

    def block(event: Event) -> None:
        if isinstance(event, GaveUp):
            blocked.set()
            assert go_on.wait(30)

    def fail() -> None:
        with pytest.raises(AcquireTimeout):
            engine.connect(deadline=0.05)

    engine = make_engine(on_event=block, max_size=1)
    thread = threading.Thread(target=fail)
    with engine.request():
        thread.start()
        assert blocked.wait(30)
    with engine.request(deadline=10) as conn:
        conn.execute("select 1")
    go_on.set()
    thread.join()
    assert engine.stats.in_use == 0


def everything(engine: Engine, superuser: psycopg.Connection[Any]) -> None:
    """Do what makes most of the events: connect, reuse, fail, lose, outlive, give up, close."""
    for number in range(2):
        with engine.request() as conn:
            conn.execute("select 1")
        if number:
            kill(superuser, *sessions(superuser, engine.settings.application_name))
    with engine.scope() as scope:
        scope.connection.execute("select 1")
        scope.fail()
    for slot in engine._slots._idle:
        slot.expires = 0.0
    with engine.request() as conn, pytest.raises(AcquireTimeout), engine.request(deadline=0.01, join=False):
        raise AssertionError("not served")
    engine.close()


@SYNC_ONLY
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_listener_leaks_nothing(make_engine: Any, superuser: Any, error: type[BaseException]) -> None:
    """Ctrl-C in a listener, at whatever event, reaches the program; no connection and no place is lost."""
    interrupted: set[type[Event]] = set()
    fleet = make_engine().settings.application_name
    countdown = [0]

    def interrupt(event: Event) -> None:
        countdown[0] -= 1
        if not countdown[0]:
            interrupted.add(type(event))
            raise error

    for position in range(1, 100):
        engine = make_engine(on_event=interrupt, max_size=1, census_ttl=0)
        countdown[0] = position
        try:
            everything(engine, superuser)
        except error:
            pass
        else:
            break
        assert engine.stats.in_use == 0
        assert engine.stats.open == len(engine._slots._idle)
        engine._current.set(None)
        with engine.request(deadline=10) as conn:
            conn.execute("select 1")
        engine.close()
        gc.collect()  # a connection that was left open would warn, which fails the test
        assert eventually(lambda: not sessions(superuser, fleet))
    assert interrupted >= {Connected, Reused, Counted, Committed, Released, RolledBack, Lost, Expired, GaveUp, Closed}


def test_interrupt_behind_a_pooler_leaks_nothing(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new connection is closed also if the interrupt comes when the pooler is told, before anybody has it."""

    def interrupt(event: Event) -> None:
        if isinstance(event, PoolerDetected):
            raise KeyboardInterrupt

    engine = make_engine(on_event=interrupt)
    monkeypatch.setattr("serverless_pg_kit.acquire_base.introduce", lambda slot, row: setattr(slot, "direct", False))
    with pytest.raises(KeyboardInterrupt):
        engine.connect()
    gc.collect()
    assert engine.stats.open == 0


def test_listener_can_come_later(make_engine: Any) -> None:
    """An engine that somebody else made, such as the default one, can still be listened to."""
    heard: list[Event] = []
    engine = make_engine()
    engine.connect()
    engine.add_listener(heard.append)
    engine.clean()
    engine.close()
    assert [type(event) for event in heard if isinstance(event, (Connected, Committed, Closed))] == [Committed, Closed]


def test_async_listener_is_refused() -> None:
    """A coroutine function would do nothing at all: it is called and never awaited."""

    async def listen(event: Event) -> None:
        """Do nothing."""

    class Listener:
        async def __call__(self, event: Event) -> None:
            """Do nothing."""

    for listener in (listen, Listener(), [print, listen]):
        with pytest.raises(SettingsError, match=r"on_event=.* is not allowed: a plain callable"):
            Engine(on_event=listener)
    with pytest.raises(SettingsError, match="plain callable"):
        Engine().add_listener(listen)


def test_no_event_holds_a_secret(make_engine: Any, server: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the events of good and bad connects nor their log records show the password."""
    heard: list[Event] = []
    password = str(conninfo_to_dict(server.dsn)["password"])
    with caplog.at_level(logging.DEBUG, "serverless_pg_kit"):
        for conninfo in (server.dsn, make_conninfo(server.dsn, dbname="nowhere")):
            engine = make_engine(conninfo=conninfo, on_event=heard.append)
            try:
                engine.connect()
                engine.clean()
            except psycopg.OperationalError:
                pass
    assert len(caplog.records) == len(heard) > 4
    texts = [repr(heard), *(repr(vars(record)) for record in caplog.records)]
    assert not [text for text in texts if password in text]
