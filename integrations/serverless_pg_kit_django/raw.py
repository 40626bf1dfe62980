"""``request.db``: the psycopg connection of a request, acquired when it is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.utils.asyncio import async_unsafe
from psycopg import Connection

from serverless_pg_kit.scope import Scope
from serverless_pg_kit_django.engines import engine_for
from serverless_pg_kit_django.time_left import time_left
from serverless_pg_kit_django.wrapper import EngineConnections


class LazyConnection:
    """Stands for the psycopg connection that `find` returns, asked at each touch: Django may take another one."""

    def __init__(self, find: Callable[[], Connection[Any]]) -> None:
        object.__setattr__(self, "_find", find)

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type[Any]:
            return Connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._find(), name, value)

    def __repr__(self) -> str:
        return "<the connection of this request, acquired when it is touched>"


def connection_of(alias: str) -> Connection[Any]:
    """Return the psycopg connection that the ORM uses for the database `alias` in this thread; Django gives it back.

    Raises ``django.db.OperationalError`` if there is none to be had.
    """
    wrapper: Any = connections[alias]
    wrapper.ensure_connection()
    conn: Connection[Any] = wrapper.connection
    return conn


class RequestDb:
    """What one request has of the database `alias` besides the ORM.

    On the kit's backend the connection is the ORM's. Beside another PostgreSQL backend it is one of its own, from the
    kit's engine, in a transaction that ends with the request: that cleans, and counts the server's sessions.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._scope: Scope | None = None
        self.connection: LazyConnection = LazyConnection(self._find)

    @async_unsafe("request.db blocks: touch it in a function for sync_to_async()")
    def _find(self) -> Connection[Any]:
        if isinstance(connections[self._alias], EngineConnections):
            return connection_of(self._alias)
        if self._scope is None:
            self._scope = engine_for(self._alias).scope(deadline=time_left(), join=False)
        return self._scope.connection

    @property
    def has_work(self) -> bool:
        """Whether there is anything to end."""
        return self._scope is not None

    def end(self, status: int) -> None:
        """End the request, which was answered with `status`: 500 and more roll back. Does nothing the second time.

        Raises what the end of `Engine.request` raises.
        """
        if self._scope is not None:
            self._scope.respond(status)
            self._scope.end()
