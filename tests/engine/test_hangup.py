"""All connections are closed at once, idle or in use, by whoever must not wait for anybody."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from programs import hide_from_server
from proxy import Proxy
from support import eventually, in_child, is_working, sessions

from serverless_pg_kit.events import Closed
from serverless_pg_kit.hangup import CANCEL_SECONDS, hang_up


def test_idle_and_in_use(make_engine: Any, superuser: Any, fleet: str) -> None:
    """All sessions end, each connection is announced as closed once, and the engine can be used again."""
    told: list[Any] = []
    engine = make_engine(on_event=lambda event: told.append(event) if isinstance(event, Closed) else None)
    conn = engine.connect()
    with engine.request(join=False) as other:
        pids = {conn.info.backend_pid, other.info.backend_pid}
    hang_up([engine], "the test")

    assert other.closed
    assert eventually(lambda: sessions(superuser, fleet) == [])
    with pytest.raises(psycopg.OperationalError):
        conn.execute("select 1")
    assert engine.connect().execute("select 1").fetchone() == (1,)
    assert {event.pid for event in told} == pids
    assert len(told) == 2


def test_nothing_is_sent_after_the_cancel(make_engine: Any, superuser: Any, fleet: str) -> None:
    """Code that catches the cancelled statement's error cannot begin another one on the same connection."""
    engine = make_engine(autocommit=True)
    errors: list[Exception] = []

    def insist() -> None:
        with engine.request() as conn:
            for _ in range(2):
                try:
                    conn.execute("select pg_sleep(60)")
                except psycopg.Error as error:
                    errors.append(error)

    thread = threading.Thread(target=insist)
    thread.start()
    assert eventually(lambda: is_working(superuser, fleet))
    hang_up([engine], "the test")
    thread.join(timeout=30)

    assert not thread.is_alive()
    assert len(errors) == 2
    assert eventually(lambda: sessions(superuser, fleet) == [])


def test_silent_server_leaves_time_for_others(
    make_engine: Any, proxy: Proxy, server: Any, superuser: Any, fleet: str
) -> None:
    """A server that does not answer to a cancel uses up its own share of the time only."""
    silent, engine = make_engine(conninfo=proxy.reroute(server.dsn), application_name="silent"), make_engine()

    def work() -> None:
        with engine.request() as conn:
            hide_from_server(conn)
            conn.execute("select pg_sleep(60)")

    with silent.request(), ThreadPoolExecutor(1) as executor:
        working = executor.submit(work)
        assert eventually(lambda: is_working(superuser, fleet))
        proxy.hush(newcomers=True)
        started = time.monotonic()
        hang_up([silent, engine], "the test")

        assert time.monotonic() - started < CANCEL_SECONDS * 5
        assert eventually(lambda: sessions(superuser, fleet) == [])
        assert isinstance(working.exception(timeout=30), psycopg.OperationalError)
        silent.connection.close()


def test_child_leaves_the_parents_connections_alone(make_engine: Any) -> None:
    """In a forked child, the engine's connections are the parent's: there is nothing to close."""
    engine = make_engine()
    with engine.request() as conn:
        pid = conn.info.backend_pid
    in_child(lambda: hang_up([engine], "the test"))

    with engine.request() as conn:
        assert conn.info.backend_pid == pid
