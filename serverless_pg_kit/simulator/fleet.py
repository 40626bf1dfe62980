"""The platform: starts containers, gives each one request at a time, freezes it in between, enforces the time limit."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from serverless_pg_kit.simulator import wire
from serverless_pg_kit.simulator.measure import Tally
from serverless_pg_kit.simulator.traffic import Arrival
from serverless_pg_kit.testing import groups

TIME_LIMIT = 15.0  # seconds that a function may take, as one would configure it
TICK = 0.05  # seconds between two looks at the clock, the connections and the display


@dataclass(frozen=True, slots=True)
class Request:
    """A request under way: when it arrived, and when its container's time is up (both monotonic)."""

    arrival: Arrival
    arrived: float
    deadline: float


class Container:
    """The parent's handle on one container process. It is frozen whenever it has no request."""

    def __init__(self, function: str, channel: socket.socket) -> None:
        self.function = function
        self.channel = channel
        self.request: Request | None = None
        self.pid: int | None = None

    def born(self, pid: int) -> None:
        """Note the pid, which is the container's first message."""
        self.pid = pid

    def give(self, request: Request) -> None:
        """Thaw the container and hand it `request`."""
        self.request = request
        self._each(groups.thaw)
        ends_at = time.time() + request.deadline - time.monotonic()
        message = {"handler": request.arrival.handler, "event": request.arrival.event, "deadline": ends_at}
        # A container that has died in the meantime is noticed when its channel is read.
        with contextlib.suppress(OSError):
            wire.send(self.channel, message)

    def freeze(self) -> None:
        """Stop the process where it is; the kernel keeps its connections open."""
        self.request = None
        self._each(groups.freeze)

    def kill(self) -> None:
        """End the process, frozen or not."""
        self._each(groups.kill)
        self.channel.close()

    def _each(self, act: Callable[[int], None]) -> None:
        # One without a pid is being born and awake; it ends when it finds its channel closed.
        if self.pid is not None:
            act(self.pid)


class Fleet:
    """The containers of all functions of one act. Close it.

    `spawn` starts a container for a function and returns the channel to it, `limits` says how many containers each
    function may have, `observe` is called at least every `TICK` seconds while time passes.
    """

    def __init__(
        self,
        spawn: Callable[[str], socket.socket],
        limits: Mapping[str, int],
        tally: Tally,
        observe: Callable[[], None] = lambda: None,
        time_limit: float = TIME_LIMIT,
    ) -> None:
        self._spawn = spawn
        self._limits = limits
        self._tally = tally
        self._observe = observe
        self._time_limit = time_limit
        self._selector = selectors.DefaultSelector()
        self._waiting: defaultdict[str, deque[tuple[Arrival, float]]] = defaultdict(deque)
        self._idle: defaultdict[str, list[Container]] = defaultdict(list)
        self.containers: list[Container] = []
        self._next_look = 0.0

    @property
    def waiting(self) -> int:
        """How many requests wait for a container."""
        return sum(map(len, self._waiting.values()))

    def play(self, arrivals: Iterable[Arrival]) -> None:
        """Let `arrivals` come at their times, counted from now, and return when each has its answer."""
        start = time.monotonic()
        coming = deque(sorted(arrivals, key=lambda arrival: arrival.at))
        while coming or self.waiting or self.busy():
            while coming and start + coming[0].at <= time.monotonic():
                arrival = coming.popleft()
                self._waiting[arrival.function].append((arrival, start + arrival.at))
            self._dispatch()
            self._pass_time(start + coming[0].at if coming else None)

    def rest(self, seconds: float) -> None:
        """Let time pass while nothing arrives and every container is frozen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._pass_time(end)

    def close(self) -> None:
        """Kill every container."""
        for container in self.containers:
            container.kill()
        self.containers.clear()
        self._selector.close()

    def busy(self) -> list[Container]:
        """Return the containers that are awake."""
        return [container for container in self.containers if container.request]

    def _dispatch(self) -> None:
        """Give waiting requests to containers, per function in order of arrival."""
        for function, queue in self._waiting.items():
            while queue and (container := self._container_for(function)):
                arrival, arrived = queue.popleft()
                container.give(Request(arrival, arrived, time.monotonic() + self._time_limit))

    def _container_for(self, function: str) -> Container | None:
        """A warm container, the one used last first, or a new one, or none if the function is at its limit."""
        if self._idle[function]:
            return self._idle[function].pop()
        if sum(container.function == function for container in self.containers) >= self._limits[function]:
            return None
        container = Container(function, self._spawn(function))
        self.containers.append(container)
        self._selector.register(container.channel, selectors.EVENT_READ, container)
        return container

    def _pass_time(self, until: float | None) -> None:
        """Wait for answers, at most until `until` or the next tick."""
        now = time.monotonic()
        pause = TICK if until is None else min(TICK, until - now)
        for key, _ in self._selector.select(max(0.0, pause)):
            self._hear(key.data)
        self._enforce_time_limit()
        if time.monotonic() >= self._next_look:
            self._observe()
            self._next_look = time.monotonic() + TICK

    def _hear(self, container: Container) -> None:
        message = wire.receive(container.channel)
        if message is None:
            self._lose(container, "the container exited")
        elif "pid" in message:
            container.born(message["pid"])
        elif container.request:
            self._count(message, container.request)
            container.freeze()
            self._idle[container.function].append(container)

    def _count(self, answer: dict[str, Any], request: Request) -> None:
        if answer["status"] < 500:
            self._tally.served(time.monotonic() - request.arrived)
        else:
            self._tally.failed_because(answer.get("error") or f"status {answer['status']}")

    def _enforce_time_limit(self) -> None:
        now = time.monotonic()
        for container in self.busy():
            if container.request and container.request.deadline <= now:
                self._lose(container, f"timed out after {self._time_limit:g} s")

    def _lose(self, container: Container, why: str) -> None:
        if container.request:
            self._tally.failed_because(why)
        elif container in self._idle[container.function]:
            self._idle[container.function].remove(container)
        self._selector.unregister(container.channel)
        self.containers.remove(container)
        container.kill()
