"""What a warm request costs over hand-written psycopg: BEGIN, one statement, COMMIT on a connection that is kept.

    python benchmarks/warm_request.py

Client and backend share one core, so that elapsed time is the CPU time of both and no wake-up across cores blurs it
(where the system does not let us pin the backend, that is said). The contestants take turns, and each turn of the kit's
stands between two of psycopg by hand: what is told is the median of the differences to these two, because the machine's
speed changes from one second to the next. Now and then all of them begin anew with other connections: where a backend's
memory happens to lie is worth several microseconds. Compare ratios and differences within one run; the microseconds are
this machine's.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from serverless_pg_kit import Engine
from serverless_pg_kit.testing import PostgresServer

LAYOUTS = 8
TURNS = 15  # in each of them
REQUESTS = 60
BY_HAND = "psycopg by hand"


@contextmanager
def contestants(dsn: str) -> Iterator[dict[str, Callable[[], object]]]:
    """Yield one function for each contestant that serves one request."""
    settings: dict[str, dict[str, Any]] = {"kit": {}, "kit, reset off": {"reset": False}}
    engines = {name: Engine(conninfo=dsn, census_ttl=3600, **names) for name, names in settings.items()}
    bare = psycopg.connect(dsn)

    def by_hand() -> None:
        bare.execute("select 1")
        bare.commit()

    def request(engine: Engine, deadline: float | None) -> Callable[[], None]:
        def serve() -> None:
            with engine.request(deadline=deadline) as conn:
                conn.execute("select 1")

        return serve

    yield {
        BY_HAND: by_hand,
        "kit": request(engines["kit"], None),
        "kit, with deadline": request(engines["kit"], 30.0),
        "kit, reset off": request(engines["kit, reset off"], None),
    }
    bare.close()
    for engine in engines.values():
        engine.close()


def pin(dsn: str) -> str:
    """Put this process and all its backends on one core; say how far that went."""
    core = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(0, core)
    with psycopg.connect(dsn) as conn:
        pids = [pid for (pid,) in conn.execute("select pid from pg_stat_activity where usename = 'app'")]
    try:
        for pid in pids:
            os.sched_setaffinity(pid, core)
    except PermissionError:
        return "backends not pinned (the server belongs to another user)"
    except ProcessLookupError:
        pass  # the backend that answered the question
    return "client and backends on one core"


def turn(serve: Callable[[], object]) -> float:
    """Return the microseconds a request took, on average of one turn."""
    started = time.perf_counter()
    for _ in range(REQUESTS):
        serve()
    return (time.perf_counter() - started) / REQUESTS * 1e6


def main() -> None:
    """Measure all contestants in turns and print the table."""
    taken: dict[str, list[float]] = defaultdict(list)
    differences: dict[str, list[float]] = defaultdict(list)
    pinned = ""
    with PostgresServer() as server:
        for _ in range(LAYOUTS):
            with contestants(server.dsn) as serving:
                by_hand = serving.pop(BY_HAND)
                for serve in (by_hand, *serving.values()):
                    turn(serve)
                pinned = pin(server.dsn)
                for name, serve in list(serving.items()) * TURNS:
                    before, own, after = turn(by_hand), turn(serve), turn(by_hand)
                    taken[BY_HAND].append(before)
                    taken[name].append(own)
                    differences[name].append(own - (before + after) / 2)
    print(f"{pinned}; medians of {LAYOUTS} times {TURNS} turns of {REQUESTS} requests")
    print(f"{'':22}{'us/request':>12}{'over psycopg':>14}{'ratio':>8}")
    base = statistics.median(taken[BY_HAND])
    print(f"{BY_HAND:22}{base:12.1f}")
    for name, values in differences.items():
        over = statistics.median(values)
        print(f"{name:22}{statistics.median(taken[name]):12.1f}{over:14.1f}{1 + over / base:8.2f}")


if __name__ == "__main__":
    main()
