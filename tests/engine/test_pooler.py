"""Behind a real PgBouncer in transaction mode nothing reaches the session, which may be another client's next."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from proxy import Proxy
from psycopg.conninfo import conninfo_to_dict
from support import eventually

from serverless_pg_kit import Engine
from serverless_pg_kit.events import Event, Leased, PoolerDetected
from serverless_pg_kit.testing import PostgresServer

CONFIGURATION = """
[databases]
app = host=127.0.0.1 port={port} dbname=app user=app password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 1000
"""


@pytest.fixture
def pooler(server: PostgresServer) -> Iterator[str]:
    """The connection string of a PgBouncer with one server connection."""
    with pgbouncer(server, size=1) as dsn:
        yield dsn


@pytest.fixture
def big_pooler(server: PostgresServer) -> Iterator[str]:
    """The connection string of a PgBouncer with ten server connections."""
    with pgbouncer(server, size=10) as dsn:
        yield dsn


@contextmanager
def pgbouncer(server: PostgresServer, size: int) -> Iterator[str]:
    """Run a PgBouncer in transaction mode with `size` server connections; yield its connection string."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("PgBouncer is not installed (apt-get install pgbouncer)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = probe.getsockname()[1]
    names = {"port": server.port, "password": conninfo_to_dict(server.dsn)["password"], "listen": listen, "size": size}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "pgbouncer.ini"
        file.write_text(CONFIGURATION.format(**names), encoding="ascii")
        user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
        with subprocess.Popen([program, "-q", str(file)], user=user, cwd="/", stderr=subprocess.DEVNULL) as process:
            try:
                assert eventually(lambda: accepts(listen))
                yield f"host=127.0.0.1 port={listen} dbname=app user=app"
            finally:
                process.kill()


def accepts(port: int) -> bool:
    """Tell whether somebody listens."""
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


def talk(conn: psycopg.Connection[Any]) -> None:
    """Ask the server something while a connection is configured."""
    conn.execute("select 1")
    conn.commit()


@pytest.mark.parametrize("configure", [None, talk])
def test_nothing_session_wide_is_sent_through_a_pooler(engines: Any, pooler: str, configure: Any) -> None:
    """The guard, the time-outs and the reset stay away from a server connection that others use too; so do prepared
    statements."""
    events: list[Event] = []
    engine = engines(conninfo=pooler, on_event=events.append, configure=configure)
    for _ in range(8):  # more often than psycopg waits before it prepares a statement
        with engine.request(deadline=30) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    assert len([event for event in events if isinstance(event, PoolerDetected)]) == 1
    with psycopg.connect(pooler, prepare_threshold=None) as other:
        query = """select current_setting('statement_timeout'), current_setting('client_connection_check_interval'),
                   (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
                   (select count(*) from pg_prepared_statements)"""
        assert other.execute(query).fetchone() == ("0", "0", 0, 0)


def test_nobody_is_counted_or_ended_through_a_pooler(engines: Any, pooler: str) -> None:
    """What could be counted is the pooler's connections, not the clients'."""
    engine = engines(conninfo=pooler, conn_utilization=0.0, strategy="ranked")
    engine.connect()
    report = engine.clean()
    assert (report.decision, report.census, report.killed) == ("kept", None, ())
    assert "pooler" in report.reason
    with pytest.raises(RuntimeError, match="pooler"):
        engine.census()


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_no_lease_is_set_through_a_pooler(engines: Any, pooler: str, reset: bool, autocommit: bool) -> None:
    """The server connection is not this client's to end, however short the lease: nobody else finds one on it."""
    events: list[Event] = []
    engine = engines(conninfo=pooler, lease=0.05, reset=reset, autocommit=autocommit, on_event=events.append)
    with psycopg.connect(pooler, prepare_threshold=None, autocommit=True) as other:
        for deadline in (None, 30.0) * 4:
            with engine.request(deadline=deadline) as conn:
                assert conn.execute("select 1").fetchone() == (1,)
            assert other.execute("show idle_session_timeout").fetchone() == ("0",)
    assert not [event for event in events if isinstance(event, Leased)]
    assert (engine.stats.connects, engine.stats.expirations) == (1, 0)


@pytest.mark.parametrize("mode", ["pgbouncer", "rds-proxy", "supavisor", "neon"])
def test_pooler_that_is_named_is_never_asked(make_engine: Any, proxy: Proxy, server: PostgresServer, mode: str) -> None:
    """Its name is enough: the first message is the user's BEGIN, and nothing is set, locked, counted or prepared."""
    events: list[Event] = []
    engine = make_engine(conninfo=proxy.reroute(server.dsn), pooler=mode, on_event=events.append)
    for _ in range(8):
        with engine.request(deadline=30) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
            locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
            assert conn.execute(locks).fetchone() == (0,)
            assert conn.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)
            assert conn.execute("show statement_timeout").fetchone() == ("0",)
    assert [event.how for event in events if isinstance(event, PoolerDetected)] == [mode]
    assert "pooler" in engine.clean().reason
    assert (engine.stats.connects, engine.stats.censuses) == (1, 0)


def test_pooler_that_is_denied_is_found_all_the_same(engines: Any, pooler: str) -> None:
    """The setting says only that no host name is to be believed: the pids are."""
    engine = engines(conninfo=pooler, pooler="none")
    engine.connect().execute("select 1")
    assert "pooler" in engine.clean().reason


@pytest.mark.timeout(300)
def test_many_clients_share_few_server_connections(engines: Any, big_pooler: str, superuser: Any, ledger: str) -> None:
    """200 clients on ten server connections make 5,000 requests: none fails, and nothing of one reaches another."""
    superuser.execute("drop sequence if exists served; create sequence served; grant all on sequence served to app")
    made = [engines(conninfo=big_pooler, max_size=1, max_wait=60.0) for _ in range(200)]
    problems: list[str] = []

    def work(engine: Engine, number: int) -> None:
        try:
            for _ in range(25):
                with engine.request(deadline=60) as conn:
                    clean = "select current_setting('kit.owner', true), (select nextval('served'))"
                    owner = conn.execute(clean).fetchone()
                    if owner is None or owner[0]:
                        problems.append(f"somebody else's setting: {owner}")
                    conn.execute("select set_config('kit.owner', %s, true)", [str(number)])
        except psycopg.Error as error:
            problems.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(engine, number)) for number, engine in enumerate(made)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert superuser.execute("select last_value from served").fetchone() == (5000,)
    assert sum(engine.stats.commits for engine in made) == 5000
    assert sum(engine.stats.losses for engine in made) == 0
