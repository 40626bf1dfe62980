"""What `rollback` does, for `AsyncEngine`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection

from serverless_pg_kit.aio.engine import AsyncEngine
from serverless_pg_kit.aio.scope import Scope, Work
from serverless_pg_kit.decisions.cleaning import CleanReport
from serverless_pg_kit.decisions.deadline import deadline_after
from serverless_pg_kit.exchange import Answers
from serverless_pg_kit.slots import Slot
from serverless_pg_kit.testing.rollback import SPOILT, replaced
from serverless_pg_kit.testing.stage import KEPT, Dialogue, StageBase, T

POLL = 0.002
"""Seconds between two looks whose turn it is. What could wake a task belongs to one event loop."""


@asynccontextmanager
async def roll_back_all(engine: AsyncEngine) -> AsyncIterator[AsyncConnection[Any]]:
    """Do what `rolled_back` does for `engine`."""
    work = Scope(engine, engine._until(None), None, None)
    slot = await engine._acquire(work)
    work.fail()
    is_intact = False
    try:
        stage = AsyncStage(engine, slot)
        await stage.play(stage.open())
        with replaced(engine, stage):
            try:
                yield slot.conn
            finally:
                is_intact = await stage.play(stage.strike())
    finally:
        await engine._conclude(slot, work)
    if not is_intact:
        raise RuntimeError(SPOILT)


class AsyncStage(StageBase):
    """Stands in for the beginning and the end of requests on an `AsyncEngine`."""

    async def acquire(self, work: Work) -> Slot:
        """Begin `work` when it is its turn."""
        seconds = self.patience(work)
        deadline = deadline_after(seconds, asyncio.get_running_loop().time)
        while not self.claim(work):
            if not deadline.remaining():
                raise self.late(seconds)
            await asyncio.sleep(POLL)
        return await self.play(self.begin(work))

    async def conclude(self, slot: Slot, work: Work) -> tuple[CleanReport, Exception | None]:
        """End `work`, unless it began before the test."""
        if self.plays(work):
            return KEPT, await self.play(self.end(slot, work))
        result: tuple[CleanReport, Exception | None] = await type(self._engine)._conclude(self._engine, slot, work)
        return result

    async def commit(self) -> None:
        """Stand in for ``conn.commit()``."""
        await self.play(self.keep())

    async def rollback(self) -> None:
        """Stand in for ``conn.rollback()``."""
        await self.play(self.roll_back())

    async def play(self, dialogue: Dialogue[T]) -> T:
        """Hold the `dialogue` with the server; return its result."""
        try:
            message = next(dialogue)
            while True:
                try:
                    answers = await self._say(message)
                except BaseException as error:
                    message = dialogue.throw(error)
                else:
                    message = dialogue.send(answers)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _say(self, message: str) -> Answers:
        self.check_connection()
        line: Any = self._slot.line
        line.enter_loop(self._slot.baseline)
        answers: Answers = await line.run(message.encode(), self._engine._deadline(None))
        return answers
