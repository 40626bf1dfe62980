"""What `@with_db` costs a warm Lambda function, and what it is good for in a crowd, under AWS's own runtime client.

    python benchmarks/lambda_overhead.py [turns]

Warm: the same handlers with a psycopg connection that is kept by hand and with `@with_db`, in turns; time is taken
around the whole invocation. One handler reads a row, the others are of the logistics example. The server is on this
machine, or at the end of a line on which each round trip takes a millisecond more, as from one availability zone to
another. The kit makes no round trip of its own, so what it costs is about the same on any line. All processes share one
core, so that elapsed time is CPU time (where the system does not let us pin the backends, that is said).

Crowd: 300 invocations over 60 containers, frozen in between, on 20 slots.

Milliseconds are this machine's, and the Runtime API is ours: compare ratios, and nothing with AWS. On a machine that is
busy with other things, start it with ``chrt -f 10``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import psycopg

from lambda_stage import Stage
from serverless_pg_kit.simulator.measure import Tally
from serverless_pg_kit.testing import InvocationError, LambdaContainer

TURNS = 20
INVOCATIONS = 20
"""Warm invocations of one turn."""

MILLISECOND = 0.001

CONTAINERS, SLOTS, REQUESTS = 60, 20, 300

BY_HAND = """
import os
import psycopg

conn = psycopg.connect(os.environ["DATABASE_URL"])

def read(event, context):
    with conn.transaction():
        return conn.execute("select name from products where id = %s", [event["id"]]).fetchone()[0]
"""

WITH_DB = """
from serverless_pg_kit import Engine, with_db

@with_db(Engine())
def read(event, context, conn):
    return conn.execute("select name from products where id = %s", [event["id"]]).fetchone()[0]
"""

ITEMS = [{"product_id": n, "quantity": 1} for n in (2, 3, 5)]
ORDER = {"body": json.dumps({"warehouse_id": 1, "items": ITEMS})}


class Contest(NamedTuple):
    """One handler, written twice, and the event for it."""

    name: str
    by_hand: tuple[str, ...]
    with_db: tuple[str, ...]
    event: dict[str, Any]


CONTESTS = (
    Contest("read one row", ("read", BY_HAND), ("read", WITH_DB), {"id": 7}),
    Contest("list_inventory", ("logistics.plain_handlers.list_inventory",), ("logistics.handlers.list_inventory",), {}),
    Contest(
        "create_fulfilment",
        ("logistics.plain_handlers.create_fulfilment",),
        ("logistics.handlers.create_fulfilment",),
        ORDER,
    ),
)


def warm(turns: int) -> None:
    """Compare warm invocations by hand and with the kit, and print the table."""
    rows = []
    affinity = os.sched_getaffinity(0)
    with Stage() as stage:
        for line in ("none", "1 ms"):
            os.sched_setaffinity(0, affinity)  # for the line, which a real one would not take from this core
            dsn = stage.server.dsn if line == "none" else stage.distant(MILLISECOND)
            for contest in CONTESTS:
                with (
                    stage.container(*contest.by_hand, dsn=dsn) as by_hand,
                    stage.container(*contest.with_db, dsn=dsn) as with_db,
                ):
                    rows.append(row(contest.name, line, measure(stage, turns, contest.event, by_hand, with_db)))
        print(f"Warm invocations; {stage.pin()}; medians of {turns} turns, each of {INVOCATIONS} invocations of both\n")
    print(
        "| handler | line | by hand, p50 | with_db, p50 | ratio | difference |\n| --- | --- | --- | --- | --- | --- |"
    )
    print("\n".join(rows))


def measure(
    stage: Stage, turns: int, event: dict[str, Any], by_hand: LambdaContainer, with_db: LambdaContainer
) -> list[tuple[float, float]]:
    """Return, for each turn, the p50 of either container in milliseconds."""
    for _ in range(10):
        timed(by_hand, event)
        timed(with_db, event)
    stage.pin()
    taken = []
    for _ in range(turns):
        one, other = [[timed(it, event) for _ in range(INVOCATIONS)] for it in (by_hand, with_db)]
        taken.append((statistics.median(one), statistics.median(other)))
    return taken


def timed(container: LambdaContainer, event: dict[str, Any]) -> float:
    """Return the milliseconds of one invocation."""
    started = time.perf_counter()
    container.invoke(event)
    return (time.perf_counter() - started) * 1000


def row(name: str, line: str, turns: list[tuple[float, float]]) -> str:
    """Return the line of the table."""
    by_hand, with_db, ratio, difference = map(
        statistics.median, zip(*[(one, other, other / one, other - one) for one, other in turns], strict=True)
    )
    return f"| {name} | {line} | {by_hand:.2f} ms | {with_db:.2f} ms | {ratio:.3f} | {difference:.2f} ms |"


def crowd() -> None:
    """Let more containers than slots serve a burst, and print what came of it."""
    tally = Tally()
    with Stage(max_connections=SLOTS + 4) as stage, ThreadPoolExecutor(CONTAINERS) as pool:
        stage.watcher.execute(b"alter role app connection limit %d" % SLOTS)
        containers = [stage.container("read", WITH_DB, frozen=True) for _ in range(CONTAINERS)]
        list(pool.map(LambdaContainer.start, containers))
        started = time.perf_counter()
        for latencies, errors in pool.map(serve_share, containers):
            tally.latencies += latencies
            for error in errors:
                tally.failed_because(error)
        seconds = time.perf_counter() - started
    print(f"\nA crowd: {REQUESTS} invocations over {CONTAINERS} containers on {SLOTS} slots, in {seconds:.1f} s\n")
    print("| invocations | failed | p50 | p99 | worst |\n| --- | --- | --- | --- | --- |")
    shares = [f"{tally.percentile(share) or 0:.2f} s" for share in (0.5, 0.99, 1.0)]
    print(f"| {tally.requests} | {tally.failed} | {' | '.join(shares)} |")
    for reason, count in tally.reasons.items():
        print(f"\n{count} failed: {reason}")


def serve_share(container: LambdaContainer) -> tuple[list[float], list[str]]:
    """Let a container handle its share of the crowd's events; return its latencies and errors."""
    latencies: list[float] = []
    errors: list[str] = []
    for number in range(REQUESTS // CONTAINERS):
        started = time.perf_counter()
        try:
            container.invoke({"id": number + 1}, timeout=30.0)
            latencies.append(time.perf_counter() - started)
        except InvocationError as error:
            errors.append(str(error))
    return latencies, errors


def main(turns: int = TURNS) -> None:
    """Measure and print: the crowd first, which wants all cores."""
    print(f"Python {sys.version.split()[0]}, psycopg {psycopg.__version__}")
    crowd()
    print()
    warm(turns)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
