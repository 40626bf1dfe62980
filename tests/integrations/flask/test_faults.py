"""What happens to requests when backends die, the server restarts, or all its slots are taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from flask_support import MakeSite, Site

from serverless_pg_kit import AcquireTimeout, TooManyConnections, TransactionFailed
from serverless_pg_kit.testing import PostgresServer

SOON = 20.0
"""Seconds within which a request that is in trouble has to be answered, on however slow a machine."""


@pytest.fixture(scope="module")
def small() -> Iterator[PostgresServer]:
    """A server with five slots for an ordinary role, to be restarted, with a table."""
    with PostgresServer(max_connections=8) as running:
        with psycopg.connect(running.dsn) as conn:
            conn.execute("create table written (entry int)")
        yield running


@pytest.fixture
def breakable(make_site: MakeSite, small: PostgresServer) -> Site:
    """A site on that server, with views that can be interrupted between two statements, and after the last."""
    site = make_site({"SERVERLESS_PG_CONNINFO": small.dsn, "SERVERLESS_PG_MAX_WAIT": 15})
    site.app.config["between"] = site.app.config["after"] = lambda: None

    @site.app.post("/<int:entry>")
    def write(entry: int) -> str:
        site.conn.execute("insert into written values (%s)", [entry])
        site.app.config["between"]()
        site.conn.execute("insert into written values (%s)", [entry])
        site.app.config["after"]()
        return "written"

    return site


def written(server: PostgresServer, entry: int) -> int:
    """Return how often `entry` was written; a superuser can look when nobody else can."""
    with psycopg.connect(server.superuser_dsn, dbname="app") as conn:
        [count] = conn.execute("select count(*) from written where entry = %s", [entry]).fetchone() or [0]
        return int(count)


def kill_backends(server: PostgresServer) -> None:
    """End all sessions of the ordinary role."""
    with psycopg.connect(server.superuser_dsn, autocommit=True) as conn:
        conn.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'app'")


def restart(server: PostgresServer) -> None:
    """Restart the server, as an update does."""
    server.restart()


def crash(server: PostgresServer) -> None:
    """Let the server crash and come back."""
    server.kill()
    server.start()


FAULTS = pytest.mark.parametrize("break_it", [kill_backends, restart, crash])


@FAULTS
def test_fault_between_requests(breakable: Site, small: PostgresServer, break_it: Callable[..., None]) -> None:
    """The next request does not notice."""
    assert breakable.client.post("/1").status_code == 200
    before = written(small, 1)
    break_it(small)

    assert breakable.client.post("/1").status_code == 200
    assert written(small, 1) == before + 2
    assert breakable.engine.stats.losses == 1


@FAULTS
@pytest.mark.parametrize("moment", ["between", "after"])
def test_fault_during_a_request(
    breakable: Site, small: PostgresServer, break_it: Callable[..., None], moment: str
) -> None:
    """The request is a 500, soon, and nothing of it is kept; the next one is served."""
    heard: list[Any] = []

    @breakable.app.errorhandler(500)
    def failed(error: Any) -> tuple[str, int]:
        heard.append(error.original_exception)
        return "sorry", 500

    breakable.app.config[moment] = lambda: break_it(small)
    before, started = written(small, 2), time.monotonic()
    assert breakable.client.post("/2").status_code == 500
    assert time.monotonic() - started < SOON
    assert isinstance(heard[0], psycopg.OperationalError)
    assert isinstance(heard[0], TransactionFailed) == (moment == "after")
    assert breakable.engine.stats.in_use == 0
    assert written(small, 2) == before

    breakable.app.config[moment] = lambda: None
    assert breakable.client.post("/2").status_code == 200
    assert written(small, 2) == before + 2


def fill(server: PostgresServer, stack: ExitStack) -> None:
    """Take all slots of the ordinary role."""
    with pytest.raises(psycopg.OperationalError):
        while True:
            stack.enter_context(psycopg.connect(server.dsn))


def test_full_server(make_site: MakeSite, small: PostgresServer) -> None:
    """A request that gets no slot is a database error within `max_wait`, and no hang; the next one is served."""
    site = make_site({"SERVERLESS_PG_CONNINFO": small.dsn, "SERVERLESS_PG_MAX_WAIT": 0.5, "TESTING": True})
    site.app.add_url_rule("/", view_func=lambda: str(site.conn.info.backend_pid))
    with ExitStack() as stack:
        fill(small, stack)
        started = time.monotonic()
        with pytest.raises(TooManyConnections):
            site.client.get("/")
        assert time.monotonic() - started < SOON
        assert site.engine.stats.in_use == 0

    assert site.client.get("/").status_code == 200


def test_slot_that_comes_free(breakable: Site, small: PostgresServer) -> None:
    """A request that waits for a slot gets it when somebody leaves."""
    with ExitStack() as stack:
        fill(small, stack)
        threading.Timer(0.3, stack.close).start()
        assert breakable.client.post("/3").status_code == 200


def test_slots_filled_during_a_request(breakable: Site, small: PostgresServer) -> None:
    """A request that has its connection is not concerned by others that take the rest."""
    with ExitStack() as stack:
        breakable.app.config["between"] = lambda: fill(small, stack)
        assert breakable.client.post("/4").status_code == 200


def test_server_that_is_down(make_site: MakeSite, small: PostgresServer) -> None:
    """Without a server requests fail within `max_wait`; once it is back, the next one is served."""
    site = make_site({"SERVERLESS_PG_CONNINFO": small.dsn, "SERVERLESS_PG_MAX_WAIT": 0.3, "TESTING": True})
    site.app.add_url_rule("/", view_func=lambda: str(site.conn.info.backend_pid))
    site.client.get("/")
    small.stop()
    try:
        started = time.monotonic()
        with pytest.raises(AcquireTimeout):
            site.client.get("/")
        assert time.monotonic() - started < SOON
    finally:
        small.start()

    assert site.client.get("/").status_code == 200


def test_fault_in_a_context(breakable: Site, small: PostgresServer) -> None:
    """A command whose connection dies hears of it, and the next one works."""
    for break_it, kept in ((kill_backends, 0), (lambda _: None, 1)):
        try:
            with breakable.app.app_context():
                breakable.conn.execute("insert into written values (5)")
                break_it(small)
            assert kept
        except psycopg.OperationalError:
            assert not kept
        assert breakable.engine.stats.in_use == 0
    assert written(small, 5) == 1
