"""Many requests at once on few connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import psycopg
import pytest
from asgi_support import serving
from fastapi import Depends, FastAPI
from support import sessions

from serverless_pg_kit import AsyncEngine, Engine
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_asgi import ServerlessPgMiddleware, connection, sync_connection

REQUESTS, SIZE = 200, 5
WRITE = "insert into ledger values (%s)"
LOOK = "select array_agg(entry) filter (where xmin = pg_current_xact_id()::xid), pg_backend_pid() from ledger"
"""What this very transaction has written, and on which backend."""


def application(engine: Any) -> FastAPI:
    """An application that writes an entry, pauses, and answers what its transaction has written, and where."""
    app = FastAPI()
    app.add_middleware(ServerlessPgMiddleware, engine=engine)

    @app.get("/async/{entry}")
    async def write(entry: int, conn: Any = Depends(connection)) -> Any:
        await conn.execute(WRITE, [entry])
        await asyncio.sleep(0.002)
        return await (await conn.execute(LOOK)).fetchone()

    @app.get("/sync/{entry}")
    def write_blocking(entry: int, conn: Any = Depends(sync_connection)) -> Any:
        conn.execute(WRITE, [entry])
        return conn.execute(LOOK).fetchone()

    return app


async def visit_all(url: str) -> list[httpx.Response]:
    """Send all requests at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=100) as visitor:
        return await asyncio.gather(*(visitor.get(f"/{entry}") for entry in range(REQUESTS)))


@pytest.mark.parametrize("path", ["async", "sync"])
def test_many_requests_on_few_connections(
    server: PostgresServer, ledger: str, fleet: str, superuser: psycopg.Connection[Any], path: str
) -> None:
    """200 requests at once share five connections: none fails, and none sees another's transaction."""
    make: Any = AsyncEngine if path == "async" else Engine
    engine = make(conninfo=server.dsn, application_name=fleet, max_size=SIZE, max_wait=90.0)
    with serving(application(engine)) as url:
        answers = asyncio.run(visit_all(f"{url}/{path}"))
    seen = [answer.json() for answer in answers]

    assert Counter(answer.status_code for answer in answers) == {200: REQUESTS}
    assert [written for written, _ in seen] == [[entry] for entry in range(REQUESTS)]
    assert len({pid for _, pid in seen}) <= SIZE
    assert len(sessions(superuser, fleet)) <= SIZE
    assert (engine.stats.connects <= SIZE, engine.stats.commits, engine.stats.in_use) == (True, REQUESTS, 0)
    closing = engine.close()
    if closing is not None:
        asyncio.run(closing)
