"""Which back-off to default to: a crowd in front of few slots, and a lone container in front of a full server.

    python benchmarks/backoff.py

The crowd: engines in threads, several times more than slots, each sending requests with pauses; counted are failures,
attempts that the server refused, and the time a request took. The lone container: every slot is taken for 100 ms;
measured is how long it waited beyond that. Times are of this machine; compare the rows of one run.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from contextlib import ExitStack

import psycopg

from serverless_pg_kit import Engine
from serverless_pg_kit.testing import PostgresServer

CANDIDATES = [(0.01, 0.1), (0.02, 0.5), (0.05, 1.0), (0.05, 2.0), (0.1, 2.0), (0.3, 2.0)]
CONTAINERS = 60
REQUESTS = 8
SLOTS = 20
HELD = 0.1


def crowd(dsn: str, base: float, cap: float) -> tuple[int, int, float, float, float]:
    """Return failures, refused attempts, p50 and p95 of a request and the time for all, in seconds."""
    engines = [
        Engine(conninfo=dsn, backoff_base=base, backoff_cap=cap, max_wait=30.0, application_name="crowd")
        for _ in range(CONTAINERS)
    ]
    taken: list[float] = []
    failures: list[psycopg.Error] = []

    def container(engine: Engine) -> None:
        for _ in range(REQUESTS):
            started = time.monotonic()
            try:
                with engine.request() as conn:
                    conn.execute("select pg_sleep(0.01)")
                taken.append(time.monotonic() - started)
            except psycopg.Error as error:
                failures.append(error)
            time.sleep(random.random() * 0.2)

    started = time.monotonic()
    threads = [threading.Thread(target=container, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started
    refused = sum(engine.stats.refusals for engine in engines)
    for engine in engines:
        engine.close()
    taken.sort()
    return len(failures), refused, statistics.median(taken), taken[int(len(taken) * 0.95)], seconds


def alone(dsn: str, base: float, cap: float, rounds: int = 8) -> float:
    """Return the median of the seconds that a lone container waits longer than the slots were taken."""
    return statistics.median(_alone_once(dsn, base, cap) for _ in range(rounds))


def _alone_once(dsn: str, base: float, cap: float) -> float:
    with ExitStack() as slots:
        try:
            while True:
                slots.enter_context(psycopg.connect(dsn))
        except psycopg.OperationalError:
            timer = threading.Timer(HELD, slots.pop_all().close)
        engine = Engine(conninfo=dsn, backoff_base=base, backoff_cap=cap, max_wait=30.0, application_name="alone")
        timer.start()
        started = time.monotonic()
        with engine.request():
            waited = time.monotonic() - started
        timer.join()
        engine.close()
    return max(0.0, waited - HELD)


def main() -> None:
    """Measure every candidate and print the table."""
    print(f"{CONTAINERS} containers x {REQUESTS} requests on {SLOTS} slots; lone container: full for {HELD:.1f} s")
    print(f"{'base':>6}{'cap':>6}{'failed':>8}{'refused':>9}{'p50 s':>8}{'p95 s':>8}{'all s':>8}{'lone waits s':>14}")
    with PostgresServer(max_connections=SLOTS) as server:
        for base, cap in CANDIDATES:
            failed, refused, p50, p95, seconds = crowd(server.dsn, base, cap)
            extra = alone(server.dsn, base, cap)
            print(f"{base:6}{cap:6}{failed:8}{refused:9}{p50:8.3f}{p95:8.3f}{seconds:8.1f}{extra:14.3f}", flush=True)


if __name__ == "__main__":
    main()
