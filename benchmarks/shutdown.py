"""How soon a function's session is gone from the server once the function gets SIGTERM, idle and in mid-statement.

    python benchmarks/shutdown.py [rounds]

The function runs in the real runtime client, ``awslambdaric``, on a Runtime API of our own; it waits for invocations in
its main thread, as on Python 3.11, or beside it, as from 3.12 on. Three ways take turns: no handler at all, a handler
that closes the engine, and ``close_on_sigterm``. Milliseconds are this machine's; a dash means: not within the half
second that Lambda leaves.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import psycopg

from serverless_pg_kit.testing import LambdaContainer, PostgresServer

WAYS = {
    "no handler": "",
    "handler that closes": "signal.signal(signal.SIGTERM, lambda *_: engine.close())",
    "close_on_sigterm": "close_on_sigterm(engine)",
}

FUNCTION = """
import signal
from serverless_pg_kit import Engine, close_on_sigterm, with_db

engine = Engine()
{way}

@with_db(engine)
def handler(event, context, conn):
    conn.execute("select pg_sleep(%s)", [event["seconds"]])
"""

LEFT = 0.5
"""Seconds that Lambda leaves a function without external extensions."""

Times = tuple[float, float]
"""Milliseconds until the session is gone and until the process has ended."""


def measure(way: str, server: PostgresServer, watcher: psycopg.Connection[Any], *, busy: bool, polls: bool) -> Times:
    """Start a function, signal it, and return how long it took."""
    variables = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DATABASE_URL": server.dsn,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_python{'3.13' if polls else '3.11'}",
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "function.py").write_text(FUNCTION.format(way=WAYS[way]))
        with LambdaContainer("function.handler", folder=folder, environment=variables, timeout=60.0) as container:
            bring(container, watcher, busy=busy)
            return end(container, watcher)


def bring(container: LambdaContainer, watcher: psycopg.Connection[Any], *, busy: bool) -> None:
    """Bring the function into the state in which it gets the signal."""
    if busy:
        container.start_invocation({"seconds": 30})
        while not count(watcher, "state = 'active' and query like '%pg_sleep%'"):
            time.sleep(0.01)
    else:
        container.invoke({"seconds": 0})
        container.wait_until_idle()
        time.sleep(0.05)


def end(container: LambdaContainer, watcher: psycopg.Connection[Any]) -> Times:
    """Signal the function and return how long it takes, infinity for what does not happen in time."""
    signs: dict[str, Callable[[], bool]] = {
        "gone": lambda: not count(watcher, "true"),
        "ended": lambda: container.pid is None,
    }
    seen = dict.fromkeys(signs, float("inf"))
    assert container.pid is not None
    started = time.perf_counter()
    os.kill(container.pid, signal.SIGTERM)
    while time.perf_counter() - started < LEFT and float("inf") in seen.values():
        for name, is_seen in signs.items():
            if seen[name] == float("inf") and is_seen():
                seen[name] = (time.perf_counter() - started) * 1000
    container.close()
    while count(watcher, "true"):
        watcher.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")
        time.sleep(0.01)
    return seen["gone"], seen["ended"]


def count(watcher: psycopg.Connection[Any], condition: str) -> int:
    """Return how many sessions of the function there are that meet `condition`."""
    query: Any = f"select count(*) from pg_stat_activity where usename = 'app' and {condition}"
    return int(watcher.execute(query).fetchall()[0][0])


def report(rows: Mapping[tuple[str, str, str], list[Times]]) -> str:
    """Return the table of medians."""

    def cell(values: list[float]) -> str:
        median = statistics.median(values)
        return "-" if median == float("inf") else f"{median:.0f} ms"

    lines = [
        "| SIGTERM to | the runtime waits | way | session gone | process ended |",
        "| --- | --- | --- | --- | --- |",
    ]
    for names, times in rows.items():
        lines.append(
            f"| {' | '.join(names)} | {cell([gone for gone, _ in times])} | {cell([end for _, end in times])} |"
        )
    return "\n".join(lines)


def main(rounds: int = 5) -> None:
    """Measure and print."""
    rows: dict[tuple[str, str, str], list[Times]] = {}
    with PostgresServer() as server, psycopg.connect(server.superuser_dsn, autocommit=True) as watcher:
        for _, busy, polls, way in product(range(rounds), (False, True), (False, True), WAYS):
            names = ("a busy function" if busy else "an idle function", "in a thread" if polls else "in C", way)
            rows.setdefault(names, []).append(measure(way, server, watcher, busy=busy, polls=polls))
    print(f"Python {sys.version.split()[0]}, medians of {rounds} rounds\n\n{report(rows)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
