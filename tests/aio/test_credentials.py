"""The setting ``credentials`` of an `AsyncEngine`: async functions are awaited, others do not hold up the loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from aio_support import pid_of, soon
from psycopg.conninfo import conninfo_to_dict

from serverless_pg_kit import AcquireTimeout, AsyncEngine, ConnectRejected
from serverless_pg_kit.testing import PostgresServer

Run = Callable[..., Any]


@pytest.fixture
def answer(server: PostgresServer) -> dict[str, Any]:
    """What the credentials are to say."""
    return conninfo_to_dict(server.dsn)


def test_async_function_is_awaited(run: Run, answer: dict[str, Any], fleet: str) -> None:
    """It may wait for whatever it needs; so may a partial or a lambda that returns an awaitable."""

    async def ask(text: str = "app") -> dict[str, Any]:
        await asyncio.sleep(0)
        return answer | {"user": text}

    class Asking:
        async def __call__(self) -> dict[str, Any]:
            return await ask()

    async def main() -> None:
        for credentials in (ask, lambda: ask("app"), Asking()):
            engine = AsyncEngine(credentials=credentials, application_name=fleet)
            assert await pid_of(engine)
            await engine.close()

    run(main())


def test_blocking_function_holds_up_nobody(run: Run, answer: dict[str, Any], fleet: str) -> None:
    """A plain function runs beside the loop, in the context of its request."""
    tenant = contextvars.ContextVar[str]("tenant")
    asked, go_on, seen = threading.Event(), threading.Event(), []

    def ask() -> dict[str, Any]:
        seen.append(tenant.get())
        asked.set()
        assert go_on.wait(30)
        return answer

    async def main() -> None:
        tenant.set("seven")
        engine = AsyncEngine(credentials=ask, application_name=fleet, max_wait=30)
        request = asyncio.ensure_future(pid_of(engine))
        await soon(asked.is_set)
        await asyncio.sleep(0.01)  # the loop runs while the function blocks
        assert not request.done()
        go_on.set()
        assert await request
        await engine.close()

    run(main())
    assert seen == ["seven"]


@pytest.mark.parametrize("blocks", [False, True])
def test_late_answer_is_named_in_time(run: Run, answer: dict[str, Any], fleet: str, blocks: bool) -> None:
    """Nothing holds the acquisition's deadline: an async function is cancelled, a blocking one left to itself."""
    cancelled, end = [], threading.Event()

    async def ask() -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return answer

    def ask_blocking() -> dict[str, Any]:
        end.wait(60)
        return answer

    async def main() -> None:
        credentials: Any = ask_blocking if blocks else ask
        engine = AsyncEngine(credentials=credentials, application_name=fleet, max_wait=0.2)
        started = time.monotonic()
        with pytest.raises(AcquireTimeout, match="`credentials` had not answered after 0"):
            await pid_of(engine)
        assert time.monotonic() - started < 10.0
        assert (engine.stats.open, engine.stats.in_use) == (0, 0)

    run(main())
    end.set()
    assert cancelled == ([] if blocks else [True])


def test_cancelled_while_it_asks(run: Run, answer: dict[str, Any], fleet: str) -> None:
    """The function is cancelled with its request, and the place is free for the next one."""
    states: list[str] = []

    async def ask() -> dict[str, Any]:
        states.append("asked")
        if len(states) == 1:
            try:
                await asyncio.sleep(60)
            finally:
                states.append("ended")
        return answer

    async def main() -> None:
        engine = AsyncEngine(credentials=ask, application_name=fleet, max_size=1)
        request = asyncio.ensure_future(pid_of(engine))
        await soon(lambda: states == ["asked"])
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert states == ["asked", "ended"]
        assert await pid_of(engine)
        await engine.close()

    run(main())


def test_async_function_that_raises(run: Run, fleet: str) -> None:
    """It is named like a plain one, and its text is not shown."""

    async def ask() -> dict[str, Any]:
        raise LookupError("hunter2-secret")

    async def main() -> None:
        with pytest.raises(ConnectRejected, match=r"`credentials` raised LookupError in ask") as caught:
            await pid_of(AsyncEngine(credentials=ask, application_name=fleet))
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None

    run(main())


def test_async_provider_forgets(run: Run, answer: dict[str, Any], fleet: str) -> None:
    """A method ``invalidate`` serves an async callable as it does a plain one."""

    class Vault:
        stale = True

        async def __call__(self) -> dict[str, Any]:
            return answer | ({"password": "stale"} if self.stale else {})

        def invalidate(self) -> None:
            self.stale = False

    async def main() -> None:
        engine = AsyncEngine(credentials=Vault(), application_name=fleet)
        assert await pid_of(engine)
        assert (engine.stats.refusals, engine.stats.credential_refreshes) == (1, 1)
        await engine.close()

    run(main())


def test_function_that_uses_its_own_engine(run: Run, answer: dict[str, Any], fleet: str) -> None:
    """It cannot get the connection that it is asked for; that is an error and no standstill."""
    made: list[AsyncEngine] = []

    async def ask() -> dict[str, Any]:
        return {"password": (await made[-1].connection).info.password}

    async def ask_anew() -> dict[str, Any]:
        async with made[-1].request() as conn:
            return {"password": conn.info.password}

    async def main(credentials: Any) -> None:
        made.append(AsyncEngine(credentials=credentials, application_name=fleet, max_wait=0.5, max_size=2))
        async with made[-1].scope() as scope:
            with pytest.raises((ConnectRejected, AcquireTimeout)):
                assert await scope.connection
        assert made[-1].stats.in_use == 0

    for credentials in (ask, ask_anew):
        run(main(credentials))
