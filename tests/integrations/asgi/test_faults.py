"""Backends that die, servers that restart, slots that are taken: between requests and during them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import psycopg
import pytest
from asgi_support import serving
from fastapi import Depends, FastAPI
from support import entries, kill, sessions

from serverless_pg_kit import AsyncEngine, Engine
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_asgi import ServerlessPgMiddleware, connection, sync_connection

KINDS = ["async", "sync"]


def application(kind: str, engine: Any, meanwhile: Callable[[], object] | None = None) -> FastAPI:
    """An application that writes 7; between two statements it calls `meanwhile`."""
    app = FastAPI()
    app.add_middleware(ServerlessPgMiddleware, engine=engine)

    @app.get("/pid")
    async def pid(conn: Any = Depends(connection if kind == "async" else sync_connection)) -> int:
        return int(conn.info.backend_pid)

    if kind == "async":

        @app.get("/")
        async def write(conn: Any = Depends(connection)) -> None:
            await conn.execute("insert into ledger values (7)")
            if meanwhile is not None:
                meanwhile()
                await conn.execute("select 1")
    else:

        @app.get("/")
        def write_blocking(conn: Any = Depends(sync_connection)) -> None:
            conn.execute("insert into ledger values (7)")
            if meanwhile is not None:
                meanwhile()
                conn.execute("select 1")

    return app


def make(kind: str, **names: Any) -> Any:
    """Return an engine of that `kind`."""
    return AsyncEngine(**names) if kind == "async" else Engine(**names)


def close(engine: Any) -> None:
    """Close an engine of either kind."""
    closing = engine.close()
    if closing is not None:
        asyncio.run(closing)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which engine serves: an `AsyncEngine`, or an `Engine`."""
    return str(request.param)


@pytest.fixture
def any_engine(kind: str, server: PostgresServer, fleet: str) -> Iterator[Any]:
    """An engine of either kind."""
    engine = make(kind, conninfo=server.dsn, application_name=fleet)
    yield engine
    close(engine)


def test_backend_dies_between_requests(
    kind: str, any_engine: Any, ledger: str, fleet: str, superuser: psycopg.Connection[Any]
) -> None:
    """A connection that died between two requests is replaced unseen."""
    with serving(application(kind, any_engine)) as url:
        first = httpx.get(f"{url}/pid").json()
        kill(superuser, first)
        assert httpx.get(url).status_code == 200
        assert httpx.get(f"{url}/pid").json() != first
    assert entries(superuser) == [7]


def test_backend_dies_during_a_request(
    kind: str, any_engine: Any, ledger: str, fleet: str, superuser: psycopg.Connection[Any]
) -> None:
    """A request whose backend is ended is a 500 and not committed; the next one is served."""
    app = application(kind, any_engine, lambda: kill(superuser, *sessions(superuser, fleet)))
    with serving(app) as url:
        assert httpx.get(url).status_code == 500
        assert httpx.get(f"{url}/pid").status_code == 200
    assert (entries(superuser), any_engine.stats.in_use) == ([], 0)


def test_backend_dies_before_commit(
    kind: str, any_engine: Any, ledger: str, fleet: str, superuser: psycopg.Connection[Any]
) -> None:
    """A request whose backend is ended after its last statement is a 500, too: its COMMIT did not happen."""
    app = FastAPI()
    app.add_middleware(ServerlessPgMiddleware, engine=any_engine)

    @app.get("/")
    async def write(conn: Any = Depends(connection if kind == "async" else sync_connection)) -> None:
        done = conn.execute("insert into ledger values (7)")
        if kind == "async":
            await done
        kill(superuser, conn.info.backend_pid)

    with serving(app) as url:
        assert httpx.get(url).status_code == 500
    assert (entries(superuser), any_engine.stats.in_use) == ([], 0)


@pytest.mark.parametrize("during", [False, True], ids=["between", "during"])
def test_server_restarts(kind: str, during: bool) -> None:
    """A restart between two requests is not seen; one during a request is its 500, and the next one is served."""
    with PostgresServer(max_connections=10) as server:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute("create table ledger (entry int)")
        engine = make(kind, conninfo=server.dsn)
        app = application(kind, engine, (lambda: server.restart("immediate")) if during else None)
        with serving(app) as url:
            first = httpx.get(f"{url}/pid", timeout=60).json()
            if not during:
                server.restart()
            assert httpx.get(url, timeout=60).status_code == (500 if during else 200)
            assert httpx.get(f"{url}/pid", timeout=60).json() != first
        close(engine)
        with psycopg.connect(server.dsn) as conn:
            assert conn.execute("select count(*) from ledger").fetchone() == (0 if during else 1,)


def test_slots_are_taken(kind: str, tiny_server: PostgresServer, fleet: str) -> None:
    """While others hold all slots a request waits; it is served when one is free, and a 500 when none becomes free."""
    engine = make(kind, conninfo=tiny_server.dsn, application_name=fleet, max_wait=0.5, down_ttl=0.0)
    patient = make(kind, conninfo=tiny_server.dsn, application_name=f"{fleet} patient", max_wait=60.0)
    with (
        serving(application(kind, engine)) as url,
        serving(application(kind, patient)) as patient_url,
        ExitStack() as hold,
    ):
        fill(tiny_server, hold)
        started = time.monotonic()
        assert httpx.get(f"{url}/pid", timeout=60).status_code == 500
        assert time.monotonic() - started < 30

        async def visit() -> int:
            async with httpx.AsyncClient(timeout=60) as visitor:
                waiting = asyncio.create_task(visitor.get(f"{patient_url}/pid"))
                while not patient.stats.refusals:
                    await asyncio.sleep(0.005)
                hold.close()
                return (await waiting).status_code

        assert asyncio.run(visit()) == 200
    close(engine)
    close(patient)


def fill(server: PostgresServer, hold: ExitStack) -> None:
    """Take all slots of `server` that its ordinary role can have."""
    while True:
        try:
            hold.enter_context(psycopg.connect(server.dsn))
        except psycopg.OperationalError:
            return
