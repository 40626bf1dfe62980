"""Async requests that are rolled back: tasks take turns, and event loops may change. The rest is tested for both shells
in tests/testing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aio_support import write
from support import entries

from serverless_pg_kit import AcquireTimeout, AsyncEngine
from serverless_pg_kit.testing import InstantClock, rolled_back

Run = Callable[..., Any]


def test_tasks_take_turns(run: Run, engine: AsyncEngine, superuser: Any, ledger: str) -> None:
    """Many at once see each other's work, none undoes another's, and nothing is left."""

    async def work(entry: int) -> None:
        async with engine.request() as conn:
            await conn.execute("insert into ledger values (%s)", [entry])
            await asyncio.sleep(0)
            if entry % 2:
                raise ValueError(entry)

    async def main() -> list[int]:
        async with rolled_back(engine) as conn:
            await asyncio.gather(*map(work, range(10)), return_exceptions=True)
            rows = await conn.execute("select entry from ledger order by 1")
            return [entry for (entry,) in await rows.fetchall()]

    assert run(main()) == [0, 2, 4, 6, 8]
    assert entries(superuser) == []
    assert engine.stats.in_use == 0


def test_turn_that_does_not_come_is_told(run: Run, engine: AsyncEngine, ledger: str) -> None:
    """A task that waits for another one's request in vain hears of it."""

    async def late() -> None:
        with pytest.raises(AcquireTimeout, match="take turns"):
            await write(engine.request(deadline=0.05), 1)

    async def main() -> None:
        async with rolled_back(engine):
            busy = asyncio.Event()
            other = asyncio.get_running_loop().create_task(hold(engine, busy))
            await busy.wait()
            await late()
            other.cancel()

    run(main())
    assert engine.stats.in_use == 0


async def hold(engine: AsyncEngine, busy: asyncio.Event) -> None:
    """Hold a request for ever, from when `busy` is set."""
    async with engine.request():
        busy.set()
        await asyncio.Event().wait()


def test_pauses_take_no_time(run: Run) -> None:
    """An async engine can live by the instant clock, too."""
    engine = AsyncEngine(conninfo="host=127.0.0.1 port=1", max_wait=60)
    clock = InstantClock()
    clock.install(engine)

    async def main() -> None:
        with pytest.raises(AcquireTimeout):
            await engine.connect()

    run(asyncio.wait_for(main(), 20))
    assert sum(clock.slept) > 30
