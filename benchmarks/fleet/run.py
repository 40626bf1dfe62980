"""One run: all containers of one contestant against the server, for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from fleet.contestants import Client, Contestant
from fleet.cpu import server_seconds
from fleet.figures import Figures, Request, Window, figures
from fleet.scenario import Users
from serverless_pg_kit.simulator.measure import reason
from serverless_pg_kit.testing import PostgresServer

STACK = 512 * 1024  # bytes: a container needs little, and there are hundreds
GAUGES = ("open", "in_use")  # counts that go up and down
LEAVE_WITHIN = 90.0  # three times what the contestants wait for a connection
SESSIONS = "select count(*) from pg_stat_activity where usename = 'app'"


@dataclass(frozen=True)
class Scenario:
    """Classes of `users`, the seconds of `work` in a request, seconds of `warmup` and then the `seconds` that count."""

    users: Sequence[Users]
    work: float
    warmup: float
    seconds: float


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


class Warnings(logging.Handler):
    """Counts what the kit warns of, by the first line of its text, instead of printing it hundreds of times."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count a warning."""
        first_line = record.getMessage().partition(r"\n")[0]  # of a repr, where line ends are escaped
        self.texts[first_line] += 1


class Shift:
    """When all containers begin to ask, and when they stop."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.over = threading.Event()


class Container(threading.Thread):
    """A container: during its `shift` its user thinks, asks, waits for the answer, and so on."""

    def __init__(self, client: Client, pauses: Iterator[float], query: bytes, shift: Shift) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.requests: list[Request] = []
        self._pauses = pauses
        self._query = query
        self._shift = shift

    def run(self) -> None:
        """Ask until the shift is over; then close what is open."""
        self._shift.begun.wait()
        for pause in self._pauses:
            if self._shift.over.wait(pause) if pause else self._shift.over.is_set():
                break
            self.requests.append(self._ask())
        self.client.close()

    def _ask(self) -> Request:
        began, problem = time.monotonic(), ""
        try:
            self.client.serve(self._query)
        except Exception as error:
            problem = f"{type(error).__name__}: {reason(str(error))}"
        return Request(began, time.monotonic(), problem)


class Reading(NamedTuple):
    """The clocks and counters at one moment."""

    at: float
    client_cpu: float
    server_cpu: float | None
    counts: Counter[str]


def run(server: PostgresServer, contestant: Contestant, scenario: Scenario, seed: str) -> Run:
    """Let `contestant` serve `scenario` and return what came of it; the same `seed` gives the same thinking.

    Raises ``RuntimeError`` if containers or sessions are left over at the end.
    """
    shift, warnings = Shift(), Warnings()
    groups = [_containers(server, contestant, scenario, users, shift, seed) for users in scenario.users]
    fleet = [container for group in groups for container in group]
    Random(seed).shuffle(fleet)  # who begins first gets the slots first
    with _listening(warnings):
        with _small_stacks():
            for container in fleet:
                container.start()
        shift.begun.set()
        time.sleep(scenario.warmup)
        before = _read(server, fleet)
        time.sleep(max(0.0, before.at + scenario.seconds - time.monotonic()))
        after = _read(server, fleet)
        shift.over.set()
        _wait_until_left(server, fleet, after.at + LEAVE_WITHIN)
    window, left = Window(before.at, after.at), time.monotonic()
    return Run(
        contestant.name,
        [figures(str(users), _requests(group), window) for users, group in zip(scenario.users, groups, strict=True)],
        figures("all", _requests(fleet), window),
        {name: count - (0 if name in GAUGES else before.counts[name]) for name, count in after.counts.items()},
        after.client_cpu - before.client_cpu,
        None if after.server_cpu is None or before.server_cpu is None else after.server_cpu - before.server_cpu,
        left - after.at,
        warnings.texts,
    )


def _containers(
    server: PostgresServer, contestant: Contestant, scenario: Scenario, users: Users, shift: Shift, seed: str
) -> list[Container]:
    query = f"select pg_sleep({scenario.work})".encode()
    dice = [Random(f"{seed} {users} {number}") for number in range(users.size)]
    return [Container(contestant.make(server.dsn), users.pauses(rng), query, shift) for rng in dice]


def _requests(containers: Iterable[Container]) -> Iterator[Request]:
    for container in containers:
        yield from container.requests


def _read(server: PostgresServer, fleet: Sequence[Container]) -> Reading:
    at, client_cpu, server_cpu = time.monotonic(), time.process_time(), server_seconds(server.pid)
    counts: Counter[str] = Counter()
    for container in fleet:
        counts.update(container.client.counts())
    return Reading(at, client_cpu, server_cpu, counts)


@contextmanager
def _listening(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger("serverless_pg_kit")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _small_stacks() -> Iterator[None]:
    before = threading.stack_size(STACK)
    try:
        yield
    finally:
        threading.stack_size(before)


def _wait_until_left(server: PostgresServer, fleet: Sequence[Container], deadline: float) -> None:
    for container in fleet:
        container.join(max(0.0, deadline - time.monotonic()))
    hanging = sum(container.is_alive() for container in fleet)
    if hanging:
        raise RuntimeError(f"{hanging} containers still wait for an answer {LEAVE_WITHIN:g} s after the end of the run")
    with server.superuser() as conn:
        while (row := conn.execute(SESSIONS).fetchone()) != (0,):
            if time.monotonic() > deadline:
                raise RuntimeError(f"sessions left over after the end of the run: {row}")
            time.sleep(0.02)
