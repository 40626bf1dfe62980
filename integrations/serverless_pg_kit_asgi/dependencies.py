"""Dependencies for FastAPI that give the connection of the request. They need nothing of FastAPI itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from psycopg import AsyncConnection, Connection
from starlette.requests import HTTPConnection

from serverless_pg_kit import Scope
from serverless_pg_kit.aio.scope import Scope as AsyncScope
from serverless_pg_kit_asgi.blocking import in_thread
from serverless_pg_kit_asgi.middleware import ASYNC_NAME, BLOCKING_NAME

S = TypeVar("S", AsyncScope, Scope)
Dependency = Callable[[HTTPConnection], Awaitable[AsyncConnection[Any]]]
SyncDependency = Callable[[HTTPConnection], Awaitable[Connection[Any]]]


def connection_of(name: str) -> Dependency:
    """Return the dependency `connection`, for the middleware that was given this `name`."""

    async def connection(request: HTTPConnection) -> AsyncConnection[Any]:
        """Return the connection of the `request`, inside a transaction. A FastAPI dependency, for `async def`::

            async def index(conn: Annotated[AsyncConnection, Depends(connection)]): ...

        The middleware ends the transaction and takes the connection back before the answer is complete: nothing that
        runs later may use it. Raises what `AsyncEngine.request` raises, and ``RuntimeError`` in a websocket or without
        the middleware.
        """
        return await request_in(request, name, AsyncScope).connection

    return connection


def sync_connection_of(name: str) -> SyncDependency:
    """Return the dependency `sync_connection`, for the middleware that was given this `name`."""

    async def sync_connection(request: HTTPConnection) -> Connection[Any]:
        """Return the connection of the `request` for `def` endpoints, which run in threads; otherwise as `connection`.

        It needs a middleware with an `Engine`. Who waits here for a connection occupies no thread of the endpoints.
        """
        work = request_in(request, name, Scope)
        return await in_thread(lambda: work.connection)

    return sync_connection


connection: Dependency = connection_of(ASYNC_NAME)
sync_connection: SyncDependency = sync_connection_of(BLOCKING_NAME)


def request_in(request: HTTPConnection, name: str, kind: type[S]) -> S:
    """Return the engine's request that serves this HTTP `request`. Raises ``RuntimeError`` if there is none."""
    work = request.scope.get("state", {}).get(name)
    if isinstance(work, kind):
        return work
    if request.scope["type"] == "websocket":
        raise RuntimeError(
            "a websocket has no connection of its own, because it may stay open for hours: take one for each use, by"
            " `async with engine.request() as conn`"
        )
    wanted = "an AsyncEngine" if kind is AsyncScope else "an Engine"
    raise RuntimeError(
        f"no ServerlessPgMiddleware with {wanted} serves requests under the name {name!r}:"
        " app.add_middleware(ServerlessPgMiddleware, engine=engine)"
    )
