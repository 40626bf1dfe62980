from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from powertools_support import Context

from serverless_pg_kit import AsyncEngine, Engine
from serverless_pg_kit.testing import PostgresServer


@pytest.fixture(autouse=True)
def powertools_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a function's template sets."""
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "orders")
    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "shop")
    monkeypatch.delenv("LAMBDA_TASK_ROOT", raising=False)


@pytest.fixture
def engine(server: PostgresServer, fleet: str) -> Iterator[Engine]:
    """An engine on the server."""
    made = Engine(conninfo=server.dsn, application_name=fleet)
    yield made
    made.close()


@pytest.fixture
def async_engine(server: PostgresServer, fleet: str) -> Iterator[AsyncEngine]:
    """An async engine on the server."""
    made = AsyncEngine(conninfo=server.dsn, application_name=fleet)
    yield made
    asyncio.run(made.close())


@pytest.fixture
def context() -> Any:
    """The context of an invocation with plenty of time."""
    return Context(30_000)
