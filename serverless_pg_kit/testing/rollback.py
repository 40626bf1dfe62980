"""One transaction around all that an engine does, rolled back in the end: each test finds the database as it was."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, overload

from psycopg import AsyncConnection, Connection

from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.decisions.cleaning import CleanReport
from serverless_pg_kit.engine import Engine
from serverless_pg_kit.exchange import Answers
from serverless_pg_kit.scope import Scope, Work
from serverless_pg_kit.slots import Slot
from serverless_pg_kit.testing.stage import KEPT, Dialogue, StageBase, T

if TYPE_CHECKING:
    from serverless_pg_kit.aio.engine import AsyncEngine

SPOILT = "something committed or rolled back by SQL of its own: what it left stays in the database"


@overload
def rolled_back(engine: Engine) -> AbstractContextManager[Connection[Any]]: ...
@overload
def rolled_back(engine: AsyncEngine) -> AbstractAsyncContextManager[AsyncConnection[Any]]: ...
def rolled_back(engine: Any) -> Any:
    """Let every request on `engine` inside the block share one transaction, which is rolled back at its end.

    For ``with``, or ``async with`` if it is an `AsyncEngine`; gives the connection. Each request is a savepoint: what
    succeeds is seen by the requests after it, what fails is undone, and constraints that are deferred are checked at
    its end. ``conn.commit()`` and ``conn.rollback()`` work by savepoints, too. Requests of several threads or tasks
    take turns; whoever waits for one in vain hears `AcquireTimeout`.

    What belongs to real transactions is not there: isolation levels, deadlines of statements, the reset of the session,
    events of the requests; ``now()`` stands still.

    Raises ``ValueError`` for an engine with ``autocommit=True``; ``RuntimeError`` inside another block for the same
    engine, and at the end if something committed by SQL of its own, which stays in the database.
    """
    check(engine)
    if isinstance(engine, Engine):
        return roll_back_all(engine)
    from serverless_pg_kit.testing.aio_rollback import roll_back_all as roll_back_all_async

    return roll_back_all_async(engine)


def check(engine: EngineBase) -> None:
    """Raise what `rolled_back` says of engines that it cannot serve."""
    if not isinstance(engine, EngineBase):
        raise TypeError(f"rolled_back() takes an engine, not {type(engine).__name__}")
    if engine.settings.autocommit:
        raise ValueError("rolled_back() needs transactions, but this engine has autocommit=True")
    if "_acquire" in vars(engine):
        raise RuntimeError("this engine is inside rolled_back() already")


@contextmanager
def replaced(engine: Any, stage: Any) -> Iterator[None]:
    """Let requests of `engine` begin, commit and end on `stage` for the length of the block."""
    plain = copy.copy(engine)  # takes its census over a connection of its own
    mine = {"_acquire": stage.acquire, "_conclude": stage.conclude, "census": plain.census}
    vars(engine).update(mine)
    vars(stage._conn).update(commit=stage.commit, rollback=stage.rollback)
    try:
        yield
    finally:
        for name in mine:
            del vars(engine)[name]
        for name in ("commit", "rollback"):
            vars(stage._conn).pop(name, None)


@contextmanager
def roll_back_all(engine: Engine) -> Iterator[Connection[Any]]:
    """Do what `rolled_back` does for `engine`."""
    work = Scope(engine, engine._until(None), None, None)
    slot = engine._acquire(work)
    work.fail()
    is_intact = False
    try:
        stage = Stage(engine, slot)
        stage.play(stage.open())
        with replaced(engine, stage):
            try:
                yield slot.conn
            finally:
                is_intact = stage.play(stage.strike())
    finally:
        engine._conclude(slot, work)
    if not is_intact:
        raise RuntimeError(SPOILT)


class Stage(StageBase):
    """Stands in for the beginning and the end of requests on an `Engine`."""

    def __init__(self, engine: Engine, slot: Slot) -> None:
        super().__init__(engine, slot)
        self._turn = threading.Condition()

    def acquire(self, work: Work) -> Slot:
        """Begin `work` when it is its turn."""
        seconds = self.patience(work)
        with self._turn:
            if not self._turn.wait_for(lambda: self.claim(work), min(seconds, threading.TIMEOUT_MAX)):
                raise self.late(seconds)
        return self.play(self.begin(work))

    def conclude(self, slot: Slot, work: Work) -> tuple[CleanReport, Exception | None]:
        """End `work`, unless it began before the test."""
        if not self.plays(work):
            return type(self._engine)._conclude(self._engine, slot, work)  # type: ignore[no-any-return]
        try:
            return KEPT, self.play(self.end(slot, work))
        finally:
            with self._turn:
                self._turn.notify_all()

    def commit(self) -> None:
        """Stand in for ``conn.commit()``."""
        self.play(self.keep())

    def rollback(self) -> None:
        """Stand in for ``conn.rollback()``."""
        self.play(self.roll_back())

    def play(self, dialogue: Dialogue[T]) -> T:
        """Hold the `dialogue` with the server; return its result."""
        try:
            message = next(dialogue)
            while True:
                try:
                    answers = self._say(message)
                except BaseException as error:
                    message = dialogue.throw(error)
                else:
                    message = dialogue.send(answers)
        except StopIteration as done:
            result: T = done.value
            return result

    def _say(self, message: str) -> Answers:
        self.check_connection()
        answers: Answers = self._slot.line.run(message.encode(), self._engine._deadline(None))
        return answers
