"""One transaction around all that an engine does, rolled back in the end: each test finds the database as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection

from serverless_pg_kit.engine import Engine
from serverless_pg_kit.scope import Scope
from serverless_pg_kit.testing.stage import Stage


@contextmanager
def rolled_back(engine: Engine) -> Iterator[Connection[Any]]:
    """Let every request on `engine` inside the block share one transaction, which is rolled back at its end.

    Gives the connection. Each request is a savepoint: what succeeds is seen by the requests after it, what fails is
    undone, and constraints that are deferred are checked at its end. ``conn.commit()`` and ``conn.rollback()`` work by
    savepoints, too. Requests of several threads take turns; whoever waits for one in vain hears `AcquireTimeout`.

    What belongs to real transactions is not there: isolation levels, deadlines of statements, the reset of the session,
    events of the requests; ``now()`` stands still.

    Raises ``ValueError`` for an engine with ``autocommit=True``; ``RuntimeError`` inside another block for the same
    engine, and at the end if something committed by SQL of its own, which stays in the database.
    """
    check(engine)
    work = Scope(engine, engine._deadline(None), None, None)
    slot = engine._acquire(work)
    work.fail()
    is_intact = False
    try:
        stage = Stage(engine, slot)
        with replaced(engine, stage):
            try:
                yield slot.conn
            finally:
                is_intact = stage.strike()
    finally:
        engine._conclude(slot, work)
    if not is_intact:
        raise RuntimeError("something committed or rolled back by SQL of its own: what it left stays in the database")


def check(engine: Engine) -> None:
    """Raise what `rolled_back` says of engines that it cannot serve."""
    if not isinstance(engine, Engine):
        raise TypeError(f"rolled_back() takes an Engine, not {type(engine).__name__}")
    if engine.settings.autocommit:
        raise ValueError("rolled_back() needs transactions, but this engine has autocommit=True")
    if "_acquire" in vars(engine):
        raise RuntimeError("this engine is inside rolled_back() already")


@contextmanager
def replaced(engine: Engine, stage: Stage) -> Iterator[None]:
    """Let requests of `engine` begin and end on `stage` for the length of the block."""
    plain = copy.copy(engine)  # takes its census over a connection of its own
    mine = {"_acquire": stage.acquire, "_conclude": stage.conclude, "census": plain.census}
    vars(engine).update(mine)
    try:
        yield
    finally:
        for name in mine:
            del vars(engine)[name]
