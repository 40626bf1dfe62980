"""Engines of SQLAlchemy over both shells of the kit, for tests that are written once, as blocking code."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.util import await_only, greenlet_spawn

from serverless_pg_kit import AsyncEngine, Engine
from serverless_pg_kit_sqlalchemy import create_async_engine, create_engine

T = TypeVar("T")


class Stage:
    """An engine of SQLAlchemy over one of the kit, `kit`; both live as long as the test.

    `engine` is the blocking face of either shell. What uses it is given to `run`: over the async one it is run in a
    task, where each wait of the blocking code is an ``await``, as in ``AsyncConnection.run_sync``.
    """

    def __init__(self, shell: str, settings: dict[str, Any], options: dict[str, Any]) -> None:
        self.is_async = shell == "async"
        self._loop = asyncio.new_event_loop() if self.is_async else None
        self.kit: Any
        self.engine: sa.Engine
        if self.is_async:
            self.kit = AsyncEngine(**settings)
            self.engine = create_async_engine(self.kit, **options).sync_engine
        else:
            self.kit = Engine(**settings)
            self.engine = create_engine(self.kit, **options)

    def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns."""
        if self._loop is None:
            return work()
        return self._loop.run_until_complete(greenlet_spawn(work))

    def close(self) -> None:
        """Close all connections."""
        self.run(lambda: awaited(self.kit.close()))
        if self._loop is not None:
            self._loop.close()


Make = Callable[..., Stage]


def driver(conn: sa.Connection) -> Any:
    """Return psycopg's own connection behind `conn`."""
    return conn.connection.driver_connection


def awaited(value: Any) -> Any:
    """Return the result of `value`, of either shell; to be called inside `Stage.run`."""
    return await_only(value) if inspect.isawaitable(value) else value
