"""Listeners of an `AsyncEngine`: they run in its event loop, and may leave tasks there."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from support import entries, eventually, kill, sessions

from serverless_pg_kit import AsyncEngine
from serverless_pg_kit.events import Connected, Counted, Event, Expired, Lost, Released, Reused, RolledBack

Run = Callable[..., Any]


class Writer:
    """A listener that leaves a task for each event, which writes a row through the engine that it hears."""

    def __init__(self) -> None:
        self.engine: AsyncEngine | None = None
        self.heard: list[Event] = []
        self.tasks: list[asyncio.Task[None]] = []

    def __call__(self, event: Event) -> None:
        self.heard.append(event)
        self.tasks.append(asyncio.get_running_loop().create_task(self.write(len(self.heard))))

    async def write(self, entry: int) -> None:
        assert self.engine is not None
        async with self.engine.request() as conn:
            await conn.execute("insert into ledger values (%s)", [entry])


def test_listener_may_leave_tasks_that_use_the_engine(run: Run, make_engine: Any, superuser: Any, ledger: str) -> None:
    """Their requests are their own, committed whatever becomes of the one that was heard of, and make no further
    tasks."""
    writer = Writer()
    engine = writer.engine = make_engine(on_event=writer)

    async def fail() -> None:
        async with engine.request() as conn:
            await conn.execute("insert into ledger values (-1)")
            raise ValueError("mine")

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="mine"):
                await fail()
        await asyncio.gather(*writer.tasks)
        # Until here it may be that the tasks had every connection that was idle.
        with pytest.raises(ValueError, match="mine"):
            await fail()
        await asyncio.gather(*writer.tasks)

    run(main())
    assert entries(superuser) == list(range(1, len(writer.heard) + 1))
    assert len(writer.tasks) == len(writer.heard)
    assert {Connected, Reused, Released, RolledBack} <= {type(event) for event in writer.heard}
    assert engine.stats.in_use == 0


def test_listener_sees_no_request(run: Run, make_engine: Any) -> None:
    """Neither while a request acquires its connection nor at its end is it the listener's."""
    seen: list[bool] = []
    engine: AsyncEngine = make_engine(on_event=lambda _: seen.append(engine._open_scope() is None))

    async def main() -> None:
        async with engine.scope() as scope:
            await (await scope.connection).execute("select 1")
            assert engine._open_scope() is scope

    run(main())
    assert len(seen) >= 3
    assert all(seen)


async def everything(engine: AsyncEngine, superuser: Any) -> None:
    """Do what makes most of the events: connect, reuse, lose, fail, outlive, close."""
    for number in range(2):
        async with engine.request() as conn:
            await conn.execute("select 1")
        if number:
            kill(superuser, *sessions(superuser, engine.settings.application_name))
    async with engine.scope() as scope:
        await (await scope.connection).execute("select 1")
        scope.fail()
    for slot in engine._slots._idle:
        slot.expires = 0.0
    async with engine.request() as conn:
        await conn.execute("select 1")
    await engine.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_listener_leaks_nothing(make_engine: Any, superuser: Any, error: type[BaseException]) -> None:
    """It reaches the program, at whatever event; no connection and no place is lost."""
    told: set[type[Event]] = set()
    fleet = make_engine().settings.application_name
    countdown = [0]

    def interrupt(event: Event) -> None:
        countdown[0] -= 1
        if not countdown[0]:
            told.add(type(event))
            raise error

    for position in range(1, 100):
        engine = make_engine(on_event=interrupt, max_size=1, census_ttl=0)
        countdown[0] = position
        try:
            asyncio.run(everything(engine, superuser))
        except error:
            pass
        else:
            break
        assert engine.stats.in_use == 0
        asyncio.run(engine.close())
        gc.collect()  # a connection that was left open would warn, which fails the test
        assert eventually(lambda: not sessions(superuser, fleet))
    assert told >= {Connected, Reused, Counted, Released, RolledBack, Lost, Expired}
