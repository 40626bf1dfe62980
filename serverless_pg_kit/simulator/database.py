"""Where the acts play: the logistics tables on a real server, and a monitor that counts, kills and restarts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from serverless_pg_kit.simulator.contestants import FLEET, examples_folder
from serverless_pg_kit.simulator.errors import DemoError
from serverless_pg_kit.testing import PostgresServer

SCHEMA = FLEET
GONE_WITHIN = 10.0  # seconds that the sessions of killed containers may take to disappear

# What PostgreSQL keeps back it keeps back from the free slots, so the sessions of others, the monitor's and other
# superusers' included, take slots from us. The second setting came with PostgreSQL 16.
ROOM = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true)::int, 0)
"""
OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND pid <> pg_backend_pid()"
SESSIONS = """
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND usename = %s
  AND starts_with(application_name, %s)
"""


class Database:
    """The server as the demo sees it. Made by `embedded` or `existing`, which close it.

    `dsn` is what the containers connect to, with a schema of the demo's own in front of the search path. `restart`
    restarts the server, and is ``None`` where that is not ours to do. `exclusive` says that nobody else uses the
    server, so that every session of the role is a container's. `slots` is how many sessions the containers can have.
    """

    def __init__(self, dsn: str, monitor_dsn: str, *, exclusive: bool, restart: Callable[[], None] | None) -> None:
        options = f"{conninfo_to_dict(dsn).get('options') or ''} -c search_path={SCHEMA}".strip()
        self.dsn: str = make_conninfo(dsn, application_name=FLEET, options=options)
        self._monitor_dsn = monitor_dsn
        self._restart = restart
        self._monitor = self._connect_monitor()
        self.slots: int = self._count(ROOM) - 1 - (0 if exclusive else self._count(OTHERS))
        self._filter = (_role(self.dsn), "" if exclusive else FLEET)

    @property
    def can_restart(self) -> bool:
        return self._restart is not None

    @property
    def version(self) -> str:
        """The server's version, such as ``"18.4"``."""
        return self._monitor.info.parameter_status("server_version") or "?"

    def prepare(self) -> None:
        """Wait until no container's session is left, and load fresh tables.

        Raises `DemoError` if sessions stay.
        """
        deadline = time.monotonic() + GONE_WITHIN
        while self.connections():
            if time.monotonic() > deadline:
                raise DemoError(f"{self.connections()} sessions of an earlier act did not end")
            time.sleep(0.02)
        folder = examples_folder() / "logistics"
        with psycopg.connect(self.dsn) as conn:
            _drop(conn)
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
            conn.execute((folder / "schema.sql").read_bytes())
            conn.execute((folder / "data.sql").read_bytes())

    def connections(self) -> int:
        """Return how many sessions the containers have open; the monitor's own is not among them."""
        return self._count("SELECT count(*) " + SESSIONS, *self._filter)

    def kill_connections(self) -> None:
        """Terminate every session of the containers, as an administrator or a failover would."""
        self._count("SELECT count(pg_terminate_backend(pid)) " + SESSIONS, *self._filter)

    def restart(self) -> None:
        """Restart the server and return when it accepts connections again; nothing happens if it is not ours."""
        if self._restart is None:
            return
        self._monitor.close()
        self._restart()
        self._monitor = self._connect_monitor()

    def drop(self) -> None:
        """Drop the demo's schema with all that is in it."""
        with psycopg.connect(self.dsn) as conn:
            _drop(conn)

    def close(self) -> None:
        """End the monitor's session."""
        self._monitor.close()

    def _connect_monitor(self) -> psycopg.Connection[tuple[object, ...]]:
        monitor = psycopg.connect(self._monitor_dsn, autocommit=True)
        # Two demos at once would drop each other's tables and count each other's sessions.
        row = monitor.execute("SELECT pg_try_advisory_lock(hashtext(%s))", (SCHEMA,)).fetchone()
        if row != (True,):
            monitor.close()
            raise DemoError("another demo is running in this database")
        return monitor

    def _count(self, query: str, *parameters: str) -> int:
        row = self._monitor.execute(query.encode(), parameters).fetchone()
        return int(str(row[0])) if row else 0


def _role(dsn: str) -> str:
    with psycopg.connect(dsn) as conn:
        return conn.info.user


def _drop(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(SCHEMA)))


@contextmanager
def embedded(slots: int) -> Iterator[Database]:
    """Lend a throw-away server with `slots` slots, of which PostgreSQL reserves three for superusers.

    The monitor gets a slot on top of them. Raises `ServerError` if the server cannot be found or does not start.
    """
    with PostgresServer(max_connections=slots + 1) as server:
        database = Database(server.dsn, server.superuser_dsn, exclusive=True, restart=server.restart)
        with closing(database):
            yield database


@contextmanager
def existing(dsn: str) -> Iterator[Database]:
    """Lend the server at `dsn`: a schema of the demo's own is made in it and dropped at the end.

    The monitor is an ordinary session of the same role and takes a slot. Raises `psycopg.Error` if it cannot connect.
    """
    with closing(Database(dsn, dsn, exclusive=False, restart=None)) as database:
        try:
            yield database
        finally:
            database.drop()
