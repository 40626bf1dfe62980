"""The sources of time and chance, in one place so that tests can replace them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

SYSTEM_DICE = random.SystemRandom()
"""Has no state of its own: containers that were copied from one snapshot do not roll the same numbers."""


class Clock(NamedTuple):
    """Time and chance as the engine sees them, all in seconds.

    `monotonic` measures the steps of one acquisition; `wall` measures the age of connections, because monotonic time
    stops while a container is frozen; `dice` returns a random number in [0, 1); `sleep` waits.
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    dice: Callable[[], float] = SYSTEM_DICE.random
    sleep: Callable[[float], None] = time.sleep
