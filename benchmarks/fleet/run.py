"""One run: all containers of one contestant against the server, for a while, in several client processes."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from random import Random
from typing import NamedTuple

from fleet.contestants import Contestant
from fleet.cpu import server_seconds
from fleet.crew import LEAVE_WITHIN, Log, Member, Orders, Timetable, serve, sleep_until
from fleet.figures import Figures, Window, figures
from fleet.scenario import Users
from serverless_pg_kit.testing import PostgresServer

HEAD_START = 0.2  # seconds until a timetable has reached all crews
SESSIONS = "select count(*) from pg_stat_activity where usename = 'app'"


@dataclass(frozen=True)
class Scenario:
    """Classes of `users`, the seconds of `work` in a request, seconds of `warmup` and then the `seconds` that count.

    The containers are dealt out to so many `processes`.
    """

    users: Sequence[Users]
    work: float
    warmup: float
    seconds: float
    processes: int


@dataclass(frozen=True)
class Run:
    """What came of one run: by class of users and `overall`.

    `counts` and CPU seconds are those of the window; `leaving` is the seconds until the last session had ended, and
    `warnings` are those of the kit, from the first request to the last.
    """

    contestant: str
    classes: list[Figures]
    overall: Figures
    counts: dict[str, int]
    client_cpu: float
    server_cpu: float | None
    leaving: float
    warnings: Counter[str]


class Crew(NamedTuple):
    """A client process, and the line to it."""

    process: BaseProcess
    line: Connection[object, object]

    def hear(self) -> object:
        """Return what it sends next. Raises ``RuntimeError`` if it has ended instead."""
        try:
            return self.line.recv()
        except EOFError:
            raise RuntimeError("a client process has ended before its time; see what it printed") from None


def run(server: PostgresServer, contestant: Contestant, scenario: Scenario, seed: str) -> Run:
    """Let `contestant` serve `scenario` and return what came of it; the same `seed` gives the same thinking.

    Raises ``RuntimeError`` if containers or sessions are left over at the end, or a client process is not.
    """
    orders = [
        Orders(contestant, server.dsn, scenario.users, scenario.work, seed, members)
        for members in deal(scenario.users, scenario.processes, seed)
    ]
    with _crews(orders) as crews:
        timetable = _timetable(scenario)
        for crew in crews:
            crew.line.send(timetable)
        server_cpu = _server_seconds_of(timetable.window, server.pid)
        logs = [log for log in (crew.hear() for crew in crews) if isinstance(log, Log)]
    _check_left(server, logs, timetable.window.end + LEAVE_WITHIN)
    return _summary(contestant, scenario, timetable.window, logs, server_cpu)


def deal(users: Sequence[Users], processes: int, seed: str) -> list[list[Member]]:
    """Return the members of each crew: as many everywhere, give or take one, and their classes well mixed."""
    fleet = [Member(group, number) for group, one in enumerate(users) for number in range(one.size)]
    Random(seed).shuffle(fleet)  # who begins first gets the slots first
    return [fleet[start::processes] for start in range(min(processes, len(fleet)))]


@contextmanager
def _crews(orders: Sequence[Orders]) -> Iterator[list[Crew]]:
    """Start a process for each of `orders`, and wait until all have their containers; end them after the block."""
    context = multiprocessing.get_context("spawn")
    crews = []
    for one in orders:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, one), daemon=True)
        process.start()
        theirs.close()  # so that its end is heard here
        crews.append(Crew(process, ours))
    try:
        for crew in crews:
            crew.hear()
        yield crews
    finally:
        for crew in crews:
            crew.line.close()
            crew.process.terminate()
            crew.process.join()


def _timetable(scenario: Scenario) -> Timetable:
    begin = time.monotonic() + HEAD_START
    start = begin + scenario.warmup
    return Timetable(begin, Window(start, start + scenario.seconds))


def _server_seconds_of(window: Window, pid: int) -> float | None:
    """Return the CPU seconds of the server in `window`, after that; ``None`` where that cannot be known."""
    sleep_until(window.start)
    before = server_seconds(pid)
    sleep_until(window.end)
    after = server_seconds(pid)
    return None if before is None or after is None else after - before


def _summary(
    contestant: Contestant, scenario: Scenario, window: Window, logs: Sequence[Log], server_cpu: float | None
) -> Run:
    left = time.monotonic()
    groups = [[request for log in logs for request in log.requests[group]] for group in range(len(scenario.users))]
    counts = sum((log.counts for log in logs), Counter())
    return Run(
        contestant.name,
        [figures(str(users), group, window) for users, group in zip(scenario.users, groups, strict=True)],
        figures("all", [request for group in groups for request in group], window),
        dict(counts),
        sum(log.cpu for log in logs),
        server_cpu,
        left - window.end,
        sum((log.warnings for log in logs), Counter()),
    )


def _check_left(server: PostgresServer, logs: Sequence[Log], deadline: float) -> None:
    """Wait until the sessions of the fleet have ended. Raises ``RuntimeError`` if anybody does not leave."""
    hanging = sum(log.hanging for log in logs)
    if hanging:
        raise RuntimeError(f"{hanging} containers still wait for an answer {LEAVE_WITHIN:g} s after the end of the run")
    with server.superuser() as conn:
        while (row := conn.execute(SESSIONS).fetchone()) != (0,):
            if time.monotonic() > deadline:
                raise RuntimeError(f"sessions left over after the end of the run: {row}")
            time.sleep(0.02)
