"""A crew: the containers of one client process, and what they send home when their shift is over."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from random import Random
from typing import NamedTuple

from fleet.container import Container, Shift, Warnings, listening, small_stacks
from fleet.contestants import Contestant
from fleet.figures import Request, Window
from fleet.scenario import Users

GAUGES = ("open", "in_use")  # counts that go up and down
LEAVE_WITHIN = 90.0  # three times what the contestants wait for a connection


class Member(NamedTuple):
    """One user: the class it is of, by its position among them, and its number in that class."""

    group: int
    number: int


@dataclass(frozen=True)
class Orders:
    """What a crew has to know before it starts: whose clients, for which server, and who asks for how much work.

    The same `seed` gives the same thinking, whatever crew a member is in.
    """

    contestant: Contestant
    dsn: str
    users: Sequence[Users]
    work: float
    seed: str
    members: Sequence[Member]


class Timetable(NamedTuple):
    """When all crews begin to ask, and the `window` that is measured, at the end of which they stop.

    Times are monotonic: one clock for all processes of a machine.
    """

    begin: float
    window: Window


@dataclass(frozen=True)
class Log:
    """What a crew has seen: `requests` for each class of users, the rest for all; `counts` and CPU of the window."""

    requests: list[list[Request]]
    counts: Counter[str]
    cpu: float
    warnings: Counter[str]
    hanging: int


def serve(home: Connection[object, object], orders: Orders) -> None:
    """Make the containers of `orders`, say so by ``None``, receive a `Timetable`, and send a `Log` when it is over."""
    os.setsid()  # Linux shares the CPU between sessions first: containers do not share theirs with the server
    shift, warnings = Shift(), Warnings()
    crew = [_container(orders, member, shift) for member in orders.members]
    with listening(warnings):
        with small_stacks():
            for container in crew:
                container.start()
        home.send(None)
        timetable = home.recv()
        assert isinstance(timetable, Timetable)
        counts, cpu = _work(crew, shift, timetable)
        hanging = _join(crew, timetable.window.end + LEAVE_WITHIN)
    requests: list[list[Request]] = [[] for _ in orders.users]
    for member, container in zip(orders.members, crew, strict=True):
        requests[member.group] += container.requests
    home.send(Log(requests, counts, cpu, warnings.texts, hanging))


def _container(orders: Orders, member: Member, shift: Shift) -> Container:
    users = orders.users[member.group]
    pauses = users.pauses(Random(f"{orders.seed} {users} {member.number}"))
    query = f"select pg_sleep({orders.work})".encode()
    return Container(orders.contestant.make(orders.dsn), pauses, query, shift)


def _work(crew: Sequence[Container], shift: Shift, timetable: Timetable) -> tuple[Counter[str], float]:
    """Let the containers work by the timetable; return counts and CPU seconds of its window."""
    sleep_until(timetable.begin)
    shift.begun.set()
    sleep_until(timetable.window.start)
    counts, cpu = _counts(crew), time.process_time()
    sleep_until(timetable.window.end)
    after, cpu = _counts(crew), time.process_time() - cpu
    shift.over.set()
    return Counter({name: count - (0 if name in GAUGES else counts[name]) for name, count in after.items()}), cpu


def _counts(crew: Sequence[Container]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for container in crew:
        counts.update(container.client.counts())
    return counts


def _join(crew: Sequence[Container], deadline: float) -> int:
    """Wait for the last answers; return how many are not there by `deadline`."""
    for container in crew:
        container.join(max(0.0, deadline - time.monotonic()))
    return sum(container.is_alive() for container in crew)


def sleep_until(moment: float) -> None:
    """Sleep until the monotonic clock says `moment`."""
    time.sleep(max(0.0, moment - time.monotonic()))
