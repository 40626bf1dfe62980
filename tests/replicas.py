"""A primary and a standby that follows it."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import debian_15, eventually

from serverless_pg_kit.testing import PostgresServer


def data_folder(server: PostgresServer) -> Path:
    """Return where the files of `server` are."""
    assert server._holding.folder is not None
    return server._holding.folder / "data"


def clone(primary: PostgresServer, standby: PostgresServer) -> None:
    """Let `standby` begin again with the files of `primary`, as one that follows it."""
    primary.stop()
    standby.stop()
    folder = data_folder(standby)
    for old in folder.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    subprocess.run(["cp", "-a", f"{data_folder(primary)}/.", str(folder)], check=True)
    (folder / "standby.signal").touch()
    primary.start()
    standby.start()


def execute(server: PostgresServer, statement: str) -> None:
    """Let the ordinary role run `statement`."""
    with psycopg.connect(server.dsn) as conn:
        conn.execute(statement.encode())


def follows(dsn: str) -> bool:
    """Tell whether the server at `dsn` is in recovery and has the row that its primary got last."""
    try:
        with psycopg.connect(dsn) as conn:
            row = conn.execute("select pg_is_in_recovery(), count(*) from goods").fetchone()
    except psycopg.OperationalError:  # it has to begin with recovery
        return False
    return row == (True, 2)


@contextmanager
def replicas(version: int) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """Run a primary and a standby that has all it has: a table of goods with two rows."""
    bin_dir = debian_15() if version == 15 else None
    make = functools.partial(PostgresServer, None if bin_dir else version, bin_dir=bin_dir, max_connections=20)
    with make() as primary:
        execute(primary, "create table goods (name text); insert into goods values ('salt')")
        with make(settings={"primary_conninfo": make_conninfo(primary.superuser_dsn, dbname="")}) as replica:
            clone(primary, replica)
            execute(primary, "insert into goods values ('pepper')")
            assert eventually(lambda: follows(standby_dsn(primary, replica)))
            yield primary, replica


def standby_dsn(primary: PostgresServer, replica: PostgresServer) -> str:
    """Return the connection string of `replica`: its roles and their passwords are those of its `primary`."""
    return make_conninfo(primary.dsn, port=replica.port)


def both_dsn(servers: tuple[PostgresServer, PostgresServer], **changes: str) -> str:
    """Return a connection string that names both `servers`, in this order, and the role of the first."""
    primary, replica = servers
    hosts = {"host": "127.0.0.1,127.0.0.1", "port": f"{primary.port},{replica.port}"}
    return make_conninfo("", **conninfo_to_dict(primary.dsn) | hosts | changes)
