"""What the async shell waits with, by itself."""

from __future__ import annotations

import asyncio
import math
import select
import socket
from collections.abc import Callable
from typing import Any

import pytest
from psycopg import OperationalError

from serverless_pg_kit.aio.waiting import elsewhere, is_ready, uninterrupted

Run = Callable[..., Any]


def test_look_without_time_sees_what_is_there(run: Run) -> None:
    """With no time left it is still seen what has arrived: a loop that was blocked is not a silent server."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert run(is_ready(ours.fileno(), select.POLLIN, 0.0)) is False
        theirs.send(b"x")
        assert run(is_ready(ours.fileno(), select.POLLIN, 0.0)) is True


@pytest.mark.parametrize("seconds", [0.01, -1.0])
def test_wait_ends_in_time(run: Run, seconds: float) -> None:
    """What does not happen in time has not happened."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert run(is_ready(ours.fileno(), select.POLLIN, seconds)) is False
        assert run(is_ready(ours.fileno(), select.POLLIN | select.POLLOUT, math.inf)) is True


def test_closed_descriptor_is_a_lost_connection(run: Run) -> None:
    """A descriptor that is closed is told like any other lost connection."""
    ours, theirs = socket.socketpair()
    descriptor = ours.fileno()
    ours.close()
    theirs.close()
    with pytest.raises(OperationalError, match="closed"):
        run(is_ready(descriptor, select.POLLIN, 1.0))


def test_exception_elsewhere_is_the_callers(run: Run) -> None:
    """What is raised in the thread is raised to who waits for it."""
    with pytest.raises(ZeroDivisionError):
        run(elsewhere(math.inf, lambda: 1 / 0))


def test_uninterrupted_passes_results_and_errors_on(run: Run) -> None:
    """Without a cancellation nothing is different."""

    async def work(divisor: int) -> float:
        await asyncio.sleep(0)
        return 6 / divisor

    assert run(uninterrupted(work(3))) == 2
    with pytest.raises(ZeroDivisionError):
        run(uninterrupted(work(0)))


def test_time_outs_inside_uninterrupted_work(run: Run) -> None:
    """What the work itself cancels is cancelled."""

    async def work() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.sleep(30), 0.01)

    run(uninterrupted(work()))
