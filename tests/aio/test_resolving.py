"""Host names are looked up beside the event loop, which nobody holds up."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aio_support import pid_of, soon

from serverless_pg_kit import AcquireTimeout, AsyncEngine

Run = Callable[..., Any]


class Resolver:
    """A resolver that says nothing until it is told to. `asked` is how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = threading.Event()
        self._look_up = socket.getaddrinfo

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do what ``socket.getaddrinfo`` does, later."""
        self.asked += 1
        self.answers.wait(30)
        return self._look_up("127.0.0.1", *args[1:], **kwargs)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """A slow resolver for everybody."""
    slow = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    yield slow
    slow.answers.set()


@pytest.fixture
def conninfo(server: Any) -> str:
    """The server by a name that has to be looked up."""
    return str(server.dsn.replace("127.0.0.1", "db.example") + "?sslmode=disable")


@pytest.fixture
def named(make_engine: Any, conninfo: str) -> AsyncEngine:
    """An engine that has patience with the resolver."""
    made: AsyncEngine = make_engine(conninfo=conninfo + "&connect_timeout=30", max_wait=30.0)
    return made


def test_slow_name_resolution_does_not_block_the_loop(run: Run, named: AsyncEngine, resolver: Resolver) -> None:
    """Other tasks go on while a name is looked up, and the request goes on when it is."""

    async def main() -> None:
        task = asyncio.create_task(pid_of(named))
        await soon(lambda: resolver.asked == 1)
        assert not task.done()
        resolver.answers.set()
        assert await task

    run(main())


def test_hanging_name_resolution_holds_up_nobody(run: Run, named: AsyncEngine, resolver: Resolver) -> None:
    """A request that is cancelled meanwhile ends at once, and so does ``asyncio.run``."""

    async def main() -> None:
        task = asyncio.create_task(pid_of(named))
        await soon(lambda: resolver.asked == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    started = time.monotonic()
    run(main())
    assert time.monotonic() - started < 15.0
    assert not resolver.answers.is_set()
    assert named.stats.in_use == 0


def test_name_that_resolves_too_late(run: Run, named: AsyncEngine, resolver: Resolver) -> None:
    """An answer that comes when the loop is closed is nobody's, and no error."""

    async def main() -> None:
        asyncio.create_task(pid_of(named))  # noqa: RUF006 - it ends with the loop
        await soon(lambda: resolver.asked == 1)

    run(main())
    resolver.answers.set()
    assert run(pid_of(named))
    assert named.stats.in_use == 0


def test_deadline_bounds_name_resolution(run: Run, make_engine: Any, conninfo: str, resolver: Resolver) -> None:
    """A resolver that hangs costs the request no more than its time to connect."""
    engine = make_engine(conninfo=conninfo, max_wait=0.2)
    started = time.monotonic()
    with pytest.raises(AcquireTimeout, match=r"db\.example"):
        run(pid_of(engine))
    assert time.monotonic() - started < 15.0
    assert engine.stats.in_use == 0
