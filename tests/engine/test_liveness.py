"""Connections that died meanwhile are replaced at once, and nobody notices."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import psycopg
import pytest
from proxy import Proxy
from support import check_replaced_soon, eventually, kill, sessions

from serverless_pg_kit import AcquireTimeout, TransactionFailed
from serverless_pg_kit.decisions.deadline import OPEN_SECONDS
from serverless_pg_kit.events import Event, Expired, Lost, Retrying
from serverless_pg_kit.testing import PostgresServer


def test_connection_killed_while_idle_is_replaced_without_delay(make_engine: Any, superuser: Any) -> None:
    """The free look sees it, and the first reconnect does not wait."""
    events: list[Event] = []
    engine = make_engine(on_event=events.append)
    engine.connect()
    engine.clean()
    kill(superuser, *sessions(superuser, engine.settings.application_name))
    assert engine.connect().execute("select 1").fetchone() == (1,)
    assert [event.seen for event in events if isinstance(event, Lost)] == ["peek"]
    assert not [event for event in events if isinstance(event, Retrying)]


def talk(conn: psycopg.Connection[Any]) -> None:
    """Configure a connection by SQL, which has to be done again after each reset."""
    conn.execute("set work_mem = '7MB'")
    conn.commit()


@pytest.mark.parametrize("configure", [None, talk])
def test_expired_session_is_replaced(make_engine: Any, configure: Any) -> None:
    """A session that the server ended by its lease (57P05) is told apart from one that was lost."""
    events: list[Event] = []
    engine = make_engine(lease=0.05, on_event=events.append, configure=configure)
    engine.connect()
    engine.clean()
    idle = engine._slots._idle[0]
    assert eventually(lambda: bool(_readable(idle.conn.fileno())))
    idle.idle_since = math.inf  # as if this clock had stood still meanwhile
    assert engine.connect().execute("select 1").fetchone() == (1,)
    assert [event.reason for event in events if isinstance(event, Expired)] == ["lease"]
    assert engine.stats.losses == 0


def _readable(descriptor: int) -> list[Any]:
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return poll.poll(0)


def test_notice_to_an_idle_connection_is_no_death(make_engine: Any, superuser: Any) -> None:
    """Readable does not mean dead: a notification leaves the connection in use."""
    engine = make_engine(reset=False)
    with engine.request() as conn:
        conn.execute("listen news")
    superuser.execute("notify news, 'x'")
    idle = engine._slots._idle[0]
    assert eventually(lambda: bool(_readable(idle.conn.fileno())))
    engine.connect()
    assert (engine.stats.connects, engine.stats.reuses) == (1, 1)


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_restarted_server_is_served_at_first_try(engines: Any, mode: Any) -> None:
    """After a restart or a crash of the server the next request works."""
    with PostgresServer(max_connections=10) as server:
        engine = engines(conninfo=server.dsn)
        engine.connect()
        engine.clean()
        if mode == "kill":
            server.kill()
            server.start()
        else:
            server.restart(mode)
        assert engine.connect().execute("select 1").fetchone() == (1,)
        assert engine.stats.connects == 2


def test_server_killed_in_mid_request_is_told_and_forgotten(make_engine: Any, superuser: Any) -> None:
    """The request in progress fails with the driver's error, the next one works."""
    engine = make_engine()

    def body() -> None:
        with engine.request() as conn:
            kill(superuser, conn.info.backend_pid)
            conn.execute("select 1")

    with pytest.raises(psycopg.OperationalError, match=r"terminating|closed"):
        body()
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_loss_before_commit_is_no_unknown_commit(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A connection that died before COMMIT was sent is known not to have committed."""
    engine = make_engine()

    def body() -> None:
        with engine.request() as conn:
            conn.execute("insert into ledger values (1)")
            kill(superuser, conn.info.backend_pid)

    with pytest.raises(TransactionFailed, match="before COMMIT was sent"):
        body()
    assert superuser.execute("select count(*) from ledger").fetchone() == (0,)


def test_old_connections_are_replaced(make_engine: Any) -> None:
    """`max_lifetime` counts in wall-clock time, which goes on while a container is frozen."""
    engine = make_engine(max_lifetime=60.0)
    engine.connect()
    engine.clean()
    idle = engine._slots._idle[0]
    idle.expires = time.time() - 1
    engine.connect()
    assert (engine.stats.expirations, engine.stats.connects) == (1, 2)


def test_silent_loss_is_bounded(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """A connection whose line went dead without a word is replaced within about a second."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn))
    with engine.request() as conn:
        lost = conn
    proxy.hush()
    check_replaced_soon(engine, lost)


def test_silent_server_fails_within_the_deadline(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """If no other connection can be had either, the request fails in the time it was given."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), max_wait=0.6, max_size=1)
    engine.connect()
    engine.clean()
    proxy.hush(newcomers=True)
    started = time.monotonic()
    with pytest.raises(AcquireTimeout):
        engine.connect()
    assert 0.5 < time.monotonic() - started < 5.0
    assert (engine.stats.open, engine.stats.in_use) == (0, 0)


HANDLER = """
    import sys
    from serverless_pg_kit import Engine, with_db

    @with_db(Engine(conninfo=sys.argv[1], application_name=sys.argv[2]))
    def handler(event, context, conn):
        print("begun", flush=True)
        conn.execute("select pg_sleep(60)")

    handler({}, None)
"""


def test_killed_handler_leaves_nothing_open(server: PostgresServer, superuser: Any) -> None:
    """A container killed in the midst of a long query does not leave the query running on the server."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HANDLER), server.dsn, "doomed"], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        active = "select 1 from pg_stat_activity where application_name = 'doomed' and state = 'active'"
        assert eventually(lambda: superuser.execute(active).fetchone() == (1,))
        process.kill()
    assert eventually(lambda: not sessions(superuser, "doomed"))


def test_engine_that_is_collected_closes_its_connections(
    make_engine: Any, server: PostgresServer, superuser: Any
) -> None:
    """An engine nobody refers to any more leaves no session and no ResourceWarning."""
    from serverless_pg_kit import Engine

    engine = Engine(conninfo=server.dsn, application_name="collected")
    with engine.request():
        pass
    assert sessions(superuser, "collected")
    del engine
    assert eventually(lambda: not sessions(superuser, "collected"))


def test_request_that_is_late_condemns_nobody(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """Whoever has no time left for an answer learns nothing about the server: other idle connections stay."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), max_wait=5)
    with engine.request(join=False), engine.request(join=False):
        pass
    assert engine.stats.open == 2
    proxy.hush(newcomers=True)  # so that no answer can be there already
    with pytest.raises(AcquireTimeout), engine.request(deadline=0.1):
        pass
    assert engine.stats.open == 1


def test_request_that_is_over_before_it_begins_touches_nothing(make_engine: Any, superuser: Any) -> None:
    """Without any time left it is told so at once: no connect, and the idle connection stays."""
    engine = make_engine()
    for _ in range(2):
        with pytest.raises(AcquireTimeout, match="deadline was over"), engine.request(deadline=0.0):
            pass
        with engine.request():
            pass
    assert (engine.stats.connects, engine.stats.open, engine.stats.in_use) == (1, 1, 0)


def test_long_wait_in_line_says_nothing_of_the_connection(make_engine: Any) -> None:
    """A request that waited for its turn longer than a connection may be silent is served by the one it was given."""
    engine = make_engine(max_size=1, max_wait=60.0)
    served = threading.Thread(target=lambda: (engine.connect(), engine.clean()))
    with engine.request():
        served.start()
        assert eventually(lambda: engine.stats.waiting == 1)
        time.sleep(OPEN_SECONDS + 0.3)
    served.join()

    assert (engine.stats.connects, engine.stats.losses, engine.stats.reuses) == (1, 0, 1)
