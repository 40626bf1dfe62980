"""Small programs that run in a process of their own, to be signalled, forked or frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import capabilities

import serverless_pg_kit

if TYPE_CHECKING:
    from serverless_pg_kit.testing import PostgresServer

PRELUDE = """
import asyncio, os, signal, sys, threading, time
from programs import hide_from_server
from serverless_pg_kit import Engine, close_on_sigterm

def say(*words):  # in one piece: threads and signal handlers say something, too
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

def open_connection(engine):
    with engine.request() as conn:
        conn.execute("select 1")

def rest():
    while True:
        time.sleep(60)
"""
"""What the programs have in common. ``rest`` sleeps where Python runs signal handlers."""


def roots(*more: Path) -> str:
    """Return a PYTHONPATH with this module, the package, psycopg and `more`: programs do not start in the checkout."""
    folders = {Path(module.__file__ or "").parents[1] for module in (psycopg, serverless_pg_kit)}
    return os.pathsep.join(map(str, (Path(__file__).parent, *folders, *more)))


def hide_from_server(conn: psycopg.Connection[Any]) -> None:
    """Let the server not find out by itself, during a statement, that the client is gone: somebody has to cancel it.

    Not with a libpq before 17, whose cancels nobody can bound: the kit sends none there.
    """
    if capabilities.has_cancel_safe():
        conn.execute("set local client_connection_check_interval = 0")


def environ(server: PostgresServer, fleet: str) -> Mapping[str, str]:
    """Return the variables for engines on `server` that are named `fleet`."""
    return {"DATABASE_URL": server.dsn, "SERVERLESS_PG_APPLICATION_NAME": fleet, "PYTHONPATH": roots()}


@contextmanager
def program(code: str, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `code` after the prelude; it is killed with all its children at the end of the block.

    `variables` go on top of the environment.
    """
    command = [sys.executable, "-W", "error", "-c", PRELUDE + code]
    environ = {**os.environ, **variables}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def heard(process: subprocess.Popen[str]) -> str:
    """Return the next line that `process` says; an empty text if it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def backend_of(conninfo: str, fleet: str) -> int:
    """Serve a request on an engine of this process; return its backend's pid. Stands here for processes to import."""
    with serverless_pg_kit.Engine(conninfo=conninfo, application_name=fleet).request() as conn:
        return conn.info.backend_pid
