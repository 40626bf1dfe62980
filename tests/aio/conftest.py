from __future__ import annotations

import asyncio
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from serverless_pg_kit import AsyncEngine
from serverless_pg_kit.testing import PostgresServer

Run = Callable[..., Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """``asyncio.run``, by each of the event loops."""
    return asyncio.run if request.param == "asyncio" else uvloop.run


@pytest.fixture
def make_engine(request: pytest.FixtureRequest, server: PostgresServer) -> Iterator[Callable[..., AsyncEngine]]:
    """Make async engines of one fleet on the server, closed at the end of the test."""
    made: list[AsyncEngine] = []
    fleet = f"aio {zlib.crc32(request.node.name.encode())}"

    def make(**names: Any) -> AsyncEngine:
        made.append(AsyncEngine(**{"application_name": fleet} | names))
        return made[-1]

    yield functools.partial(make, conninfo=server.dsn)
    for engine in made:
        asyncio.run(engine.close())


@pytest.fixture
def engine(make_engine: Callable[..., AsyncEngine]) -> AsyncEngine:
    """An engine on the server."""
    return make_engine()
