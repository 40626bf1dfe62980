"""What the tests of the async shell need: waiting for a condition in a loop, and interrupting a task where it waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import psycopg
from support import sessions

from serverless_pg_kit import AsyncEngine


async def soon(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return when `condition` is true. Fails if it is not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


async def pid_of(engine: AsyncEngine) -> int:
    """Return the backend that serves a request now."""
    async with engine.request() as conn:
        row = await (await conn.execute("select pg_backend_pid()")).fetchone()
        assert row is not None
        return int(row[0])


async def write(request: Any, entry: int) -> None:
    """Write `entry` in a `request`."""
    async with request as conn:
        await conn.execute("insert into ledger values (%s)", [entry])


def sleepers(superuser: psycopg.Connection[Any], engine: AsyncEngine) -> int:
    """Return how many sessions of the engine's fleet sleep just now, in a statement or in a COMMIT."""
    pids = sessions(superuser, engine.settings.application_name)
    asked = "select count(*) from pg_stat_activity where pid = any(%s) and wait_event = 'PgSleep'"
    [count] = superuser.execute(asked, [pids]).fetchone() or [0]
    return int(count)


def slow_commit(superuser: Any, seconds: float) -> None:
    """Let each COMMIT of something written to the ledger take `seconds`; it fails for entries below 0."""
    superuser.execute(
        f"""create or replace function pg_temp.dawdle() returns trigger language plpgsql as
            $$ begin
                perform pg_sleep({seconds});
                if new.entry < 0 then raise check_violation; end if;
                return null;
            end $$"""
    )
    superuser.execute(
        """create constraint trigger dawdle after insert on ledger deferrable initially deferred
           for each row execute function pg_temp.dawdle()"""
    )


class Interrupted:
    """Awaits `work`, and calls `interrupt` when that waits for the `moment`-th time, counted from 1."""

    def __init__(self, work: Coroutine[Any, Any, Any], moment: int, interrupt: Callable[[], object]) -> None:
        self._work = work
        self._moment = moment
        self._interrupt = interrupt
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            wanted = self._work.send(None)
            while True:
                self.waits += 1
                if self.waits == self._moment:
                    self._interrupt()
                try:
                    answer = yield wanted
                except BaseException as error:
                    wanted = self._work.throw(error)
                else:
                    wanted = self._work.send(answer)
        except StopIteration as done:
            return done.value
