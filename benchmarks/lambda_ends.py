"""How soon a Lambda container's session is gone from the server, whatever becomes of the container.

    python benchmarks/lambda_ends.py [rounds]

The functions run under AWS's own runtime client on a Runtime API of ours, in containers that are timed out, removed or
crash, idle and in the middle of a statement. The clock starts when that happens and stops when the server has no such
session any more. Milliseconds are this machine's.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lambda_stage import Stage
from serverless_pg_kit.testing import InvocationError, LambdaContainer

FUNCTION = """
import os
from serverless_pg_kit import Engine, close_on_sigterm, with_db

engine = Engine()

@with_db(engine, deadline=float("inf"))
def handler(event, context, conn):
    if event.get("exits"):
        os._exit(3)
    conn.execute("select pg_sleep(%s)", [event.get("seconds", 0)])
    return conn.info.backend_pid
"""

SIGTERM = f"{FUNCTION}\nclose_on_sigterm(engine)\n"

PATIENCE = 30.0
"""Seconds after which a session is taken for one that stays."""

End = Callable[[LambdaContainer], object]


def busy(container: LambdaContainer, seconds: float = 60.0) -> None:
    """Bring a container into the middle of a statement, with so many seconds until its time limit."""
    container.start()
    container.start_invocation({"seconds": 60}, timeout=seconds)


def idle(container: LambdaContainer, workers: int = 1) -> None:
    """Bring a container to wait for its next event, with an open session in each of its processes."""
    container.start()
    for invocation in [container.start_invocation({"seconds": 0.5 * (workers > 1)}) for _ in range(workers)]:
        invocation.result()
    container.wait_until_idle()


def time_out(container: LambdaContainer) -> None:
    """Wait until the time limit has killed the process."""
    while container.pid is not None:
        time.sleep(0.0005)


def leave(container: LambdaContainer) -> None:
    """Let the process exit in its handler."""
    with suppress(InvocationError):
        container.invoke({"exits": True})


CASES: dict[str, tuple[str, dict[str, Any], Callable[[LambdaContainer], None], End]] = {
    "killed at its time limit, in a statement": (FUNCTION, {}, lambda it: busy(it, 2.2), time_out),
    "removed without a word, in a statement": (FUNCTION, {}, busy, LambdaContainer.shut_down),
    "removed with SIGTERM, in a statement": (SIGTERM, {}, busy, LambdaContainer.shut_down),
    "removed without a word, idle": (FUNCTION, {}, idle, LambdaContainer.shut_down),
    "removed with SIGTERM, idle": (SIGTERM, {}, idle, LambdaContainer.shut_down),
    "leaving by `os._exit` in its handler": (FUNCTION, {}, idle, leave),
    "Managed Instances, and a worker leaves": (FUNCTION, {"workers": 2}, lambda it: idle(it, 2), leave),
}


def measure(
    stage: Stage, code: str, options: dict[str, Any], prepare: Callable[[LambdaContainer], None], end: End
) -> float:
    """Return the milliseconds from the end of a container to that of a session of its."""
    with stage.container("handler", code, **options) as container:
        prepare(container)
        if end is time_out:
            wait_for(lambda: is_in_statement(stage) or container.pid is None)
        elif prepare is busy:
            wait_for(lambda: is_in_statement(stage))
        before = len(stage.sessions())
        started = time.perf_counter()
        end(container)
        if end is time_out:
            started = time.perf_counter()
        wait_for(lambda: len(stage.sessions()) < max(before, 1))
        taken = (time.perf_counter() - started) * 1000
    wait_for(lambda: not stage.sessions())
    return taken


def is_in_statement(stage: Stage) -> bool:
    """Tell whether the server executes the function's statement."""
    return bool(stage.sessions("state = 'active' and query like '%pg_sleep(%'"))


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds. Raises ``TimeoutError``."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("a session stays")
        time.sleep(0.001)


def main(rounds: int = 5) -> None:
    """Measure and print."""
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    with Stage() as stage:
        for _ in range(rounds):
            for name, case in CASES.items():
                taken[name].append(measure(stage, *case))
    print(f"Python {sys.version.split()[0]}, {rounds} rounds\n")
    print("| the container is | session gone, median | worst |\n| --- | --- | --- |")
    for name, values in taken.items():
        print(f"| {name} | {statistics.median(values):.0f} ms | {max(values):.0f} ms |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
