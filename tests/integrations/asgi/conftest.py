from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.types import ASGIApp

from serverless_pg_kit import AsyncEngine, Engine
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_asgi import ServerlessPgMiddleware

MakeEngine = Callable[..., AsyncEngine]


@pytest.fixture
def make_async_engine(server: PostgresServer, fleet: str) -> Iterator[MakeEngine]:
    """Make async engines on the server, closed at the end of the test."""
    made: list[AsyncEngine] = []

    def make(**names: Any) -> AsyncEngine:
        made.append(AsyncEngine(**{"conninfo": server.dsn, "application_name": fleet} | names))
        return made[-1]

    yield make
    for engine in made:
        asyncio.run(engine.close())


@pytest.fixture
def engine(make_async_engine: MakeEngine) -> AsyncEngine:
    """An async engine on the server."""
    return make_async_engine()


@pytest.fixture
def sync_engine(server: PostgresServer, fleet: str) -> Iterator[Engine]:
    """A blocking engine on the server, of one connection less than there are requests."""
    made = Engine(conninfo=server.dsn, application_name=fleet)
    yield made
    made.close()


@pytest.fixture
def wrapped(engine: AsyncEngine) -> Callable[..., ASGIApp]:
    """Put the middleware with ``engine`` around a plain ASGI application."""
    return functools.partial(ServerlessPgMiddleware, engine=engine)
