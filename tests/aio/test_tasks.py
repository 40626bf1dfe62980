"""Many tasks at once, and tasks that share a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from aio_support import Interrupted, pid_of, sleepers, soon
from psycopg import capabilities
from support import entries

from serverless_pg_kit import AsyncEngine, TransactionFailed

Run = Callable[..., Any]

COUNT = "select count(*) from pg_stat_activity where application_name = current_setting('application_name')"


def test_many_tasks_share_few_connections(run: Run, make_engine: Any) -> None:
    """Two hundred tasks over five places: all are served, and there are never more than five backends."""
    engine = make_engine(max_size=5)

    async def count() -> int:
        async with engine.request() as conn:
            row = await (await conn.execute(COUNT)).fetchone()
            assert row is not None
            return int(row[0])

    async def main() -> list[int]:
        return await asyncio.gather(*(count() for _ in range(200)))

    counts = run(main())
    assert (len(counts), max(counts)) == (200, 5)
    assert engine.stats.commits == 200


def test_blocked_loop_is_not_a_silent_server(run: Run, engine: AsyncEngine) -> None:
    """A task that blocks the loop while another waits for its answer does not make a healthy connection look dead."""

    async def main() -> None:
        pid = await pid_of(engine)
        # Half of the time is for the answer to the open exchange, and by then the loop is blocked.
        work = empty(engine.request(deadline=1.0))
        await Interrupted(work, 1, lambda: asyncio.get_running_loop().call_soon(time.sleep, 0.6))
        assert await pid_of(engine) == pid

    run(main())
    assert (engine.stats.losses, engine.stats.connects) == (0, 1)


def test_child_tasks_join_the_request(run: Run, engine: AsyncEngine, superuser: Any, ledger: str) -> None:
    """Tasks begun inside a request share its connection and its transaction."""

    async def child(entry: int) -> None:
        async with engine.request() as conn:
            await conn.execute("insert into ledger values (%s)", [entry])

    async def main() -> None:
        async with engine.request():
            await asyncio.gather(*map(child, range(10)))
            assert entries(superuser) == []

    run(main())
    assert (entries(superuser), engine.stats.connects) == (list(range(10)), 1)


def test_first_touch_of_several_tasks_acquires_once(run: Run, engine: AsyncEngine) -> None:
    """Tasks that touch the connection of one request at the same time get the same one."""

    async def main() -> None:
        async with engine.scope() as scope:
            conns = await asyncio.gather(*(touch(engine) for _ in range(5)))
            assert all([conn is await scope.connection for conn in conns])

    run(main())
    assert (engine.stats.connects, engine.stats.in_use) == (1, 0)


async def empty(request: Any) -> None:
    """Serve a `request` that does nothing."""
    async with request:
        pass


async def touch(engine: AsyncEngine) -> psycopg.AsyncConnection[Any]:
    """Return the connection of the current request."""
    return await engine.connection


def test_failed_child_spoils_the_request(run: Run, engine: AsyncEngine, superuser: Any, ledger: str) -> None:
    """What a joined child has failed at is not committed by halves, even if its exception was caught."""

    async def child() -> None:
        async with engine.request() as conn:
            await conn.execute("insert into ledger values (1)")
            raise LookupError("mine")

    async def main() -> None:
        async with engine.request():
            await asyncio.gather(child(), return_exceptions=True)

    with pytest.raises(TransactionFailed):
        run(main())
    assert entries(superuser) == []


def test_touch_while_the_request_ends(run: Run, engine: AsyncEngine) -> None:
    """A task that asks for the connection when the request is already at its end is refused, and acquires nothing."""

    async def main() -> None:
        scope, late = engine.scope(), []
        loop = asyncio.get_running_loop()
        async with scope:
            first = asyncio.create_task(scoped(scope))
            await asyncio.sleep(0)  # the first acquires: the end has to wait for it, and the last one behind the end
            loop.call_soon(loop.call_soon, lambda: late.append(asyncio.create_task(scoped(scope))))
        await first
        with pytest.raises(RuntimeError, match="has ended"):
            await late[0]

    run(main())
    assert (engine.stats.connects, engine.stats.in_use) == (1, 0)


async def scoped(scope: Any) -> Any:
    """Return the connection of `scope`."""
    return await scope.connection


@pytest.mark.parametrize("deadline", [None, 30.0])
def test_child_that_outlives_its_request(run: Run, engine: AsyncEngine, superuser: Any, deadline: float | None) -> None:
    """A request that ends while a child uses its connection commits nothing and says so; the child gets an error at
    once, and others do not suffer."""
    children: list[asyncio.Task[Any]] = []

    async def child(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("select pg_sleep(30)")

    async def main() -> None:
        with pytest.raises(TransactionFailed):
            async with engine.request(deadline=deadline) as conn:
                children.append(asyncio.create_task(child(conn)))
                await soon(lambda: sleepers(superuser, engine) == 1)
        await asyncio.gather(*(serve(engine) for _ in range(20)))
        with pytest.raises(psycopg.Error):
            await asyncio.wait_for(children[0], 10)

    run(main())
    assert not capabilities.has_cancel_safe() or sleepers(superuser, engine) == 0
    assert engine.stats.in_use == 0


async def serve(engine: AsyncEngine) -> None:
    """Serve a few requests that take a moment."""
    for _ in range(3):
        async with engine.request() as conn:
            await conn.execute("select pg_sleep(0.01)")


def test_child_that_asks_too_late(run: Run, engine: AsyncEngine) -> None:
    """A child that begins a request after the one it was born in has one of its own."""

    async def main() -> None:
        ended = asyncio.Event()

        async def child() -> int:
            await ended.wait()
            async with engine.request() as conn:
                return conn.info.backend_pid

        async with engine.request() as conn:
            task = asyncio.create_task(child())
            pid = conn.info.backend_pid
        ended.set()
        assert await task == pid

    run(main())
    assert engine.stats.commits == 2
