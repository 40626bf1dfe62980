"""A clock on which pauses take no time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.clock import Clock


class InstantClock:
    """A clock that an engine can live by in tests: its pauses return at once, and put the clock forward.

    ::

        clock = InstantClock()
        clock.install(engine)
        clock.freeze(60.0)  # the next request finds that the process stood still

    Otherwise it goes on like the real clock, so that waiting for a server that does not answer ends. What the server
    counts, leases for instance, follows the server's clock. `slept` has the pauses so far, in seconds. `dice` returns
    the random numbers in [0, 1) that pauses and lifetimes are spread by.
    """

    def __init__(self, dice: Callable[[], float] = random.random) -> None:
        self.slept: list[float] = []
        self._dice = dice
        self._lock = threading.Lock()
        self._awake = 0.0  # seconds that passed in no time
        self._frozen = 0.0  # seconds of those in which the process stood still

    def install(self, engine: EngineBase) -> None:
        """Let `engine` live by this clock from its next request on. It forgets what it has seen of its server."""
        engine._live_by(Clock(self.monotonic, self.wall, self._dice, self.sleep))

    def monotonic(self) -> float:
        """Return the seconds of the process's own clock, which stands still in a freeze."""
        return time.monotonic() + self._awake

    def wall(self) -> float:
        """Return the time of day in seconds."""
        return time.time() + self._awake + self._frozen

    def sleep(self, seconds: float) -> None:
        """Note a pause and put the clock forward by it."""
        self.slept.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass. Raises ``ValueError`` for less than 0."""
        with self._lock:
            self._awake += _forward(seconds)

    def freeze(self, seconds: float) -> None:
        """Let the process stand still for `seconds`, as a platform does. Raises ``ValueError`` for less than 0."""
        with self._lock:
            self._frozen += _forward(seconds)


def _forward(seconds: float) -> float:
    if seconds < 0:
        raise ValueError(f"time does not go back by {-seconds} s")
    return seconds
