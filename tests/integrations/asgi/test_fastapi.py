"""The dependencies, in FastAPI."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

import fastapi
import psycopg
import pytest
from asgi_support import client, get, http_scope, run_asgi
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from starlette.requests import HTTPConnection
from support import entries

from serverless_pg_kit import AsyncEngine, Engine
from serverless_pg_kit.testing import rolled_back
from serverless_pg_kit_asgi import (
    ServerlessPgMiddleware,
    connection,
    connection_of,
    sync_connection,
    sync_connection_of,
)

Conn = Annotated[psycopg.AsyncConnection, Depends(connection)]
SyncConn = Annotated[psycopg.Connection, Depends(sync_connection)]
VERSION = tuple(int(part) for part in fastapi.__version__.split(".")[:2])


@pytest.fixture
def app(engine: AsyncEngine, sync_engine: Engine) -> FastAPI:
    """An application whose endpoints have either engine at hand."""
    made = FastAPI()
    made.add_middleware(ServerlessPgMiddleware, engine=engine)
    made.add_middleware(ServerlessPgMiddleware, engine=sync_engine)
    return made


def test_async_endpoint(
    app: FastAPI, engine: AsyncEngine, sync_engine: Engine, ledger: str, superuser: psycopg.Connection[Any]
) -> None:
    """An ``async def`` endpoint gets the connection of its request, which the answer commits."""

    @app.get("/")
    async def index(conn: Conn) -> int:
        assert conn is await engine.connection
        await conn.execute("insert into ledger values (7)")
        return 7

    assert get(app, "/").json() == 7
    assert (entries(superuser), engine.stats.in_use, sync_engine.stats.connects) == ([7], 0, 0)


def test_sync_endpoint(
    app: FastAPI, engine: AsyncEngine, sync_engine: Engine, ledger: str, superuser: psycopg.Connection[Any]
) -> None:
    """A ``def`` endpoint gets a blocking connection, in its thread; the answer commits it."""

    @app.get("/")
    def index(conn: SyncConn) -> int:
        assert threading.current_thread() is not threading.main_thread()
        assert conn is sync_engine.connection
        conn.execute("insert into ledger values (7)")
        return 7

    assert get(app, "/").json() == 7
    assert (entries(superuser), sync_engine.stats.in_use, engine.stats.connects) == ([7], 0, 0)


def test_sync_endpoint_fails(
    app: FastAPI, sync_engine: Engine, ledger: str, superuser: psycopg.Connection[Any]
) -> None:
    """An exception in a ``def`` endpoint rolls back, and a COMMIT that fails is a 500."""

    @app.get("/error")
    def error(conn: SyncConn) -> None:
        conn.execute("insert into ledger values (7)")
        raise ValueError

    @app.get("/commit")
    def commit(conn: SyncConn) -> str:
        conn.execute("insert into ledger values (7), (7)")
        return "done"

    assert [get(app, path).status_code for path in ("/error", "/commit")] == [500, 500]
    assert (entries(superuser), sync_engine.stats.in_use) == ([], 0)


def test_sync_endpoint_leaves_no_request_behind(app: FastAPI, sync_engine: Engine) -> None:
    """After the answer, the enclosing request of whoever called the application is the current one again."""

    @app.get("/")
    def index(conn: SyncConn) -> None:
        conn.execute("select 1")

    async def visit() -> None:
        with sync_engine.scope() as scope:
            async with client(app) as visitor:
                assert (await visitor.get("/")).status_code == 200
            assert sync_engine.connection is scope.connection

    asyncio.run(visit())


def test_streaming_sync_endpoint(
    app: FastAPI, sync_engine: Engine, ledger: str, superuser: psycopg.Connection[Any]
) -> None:
    """A ``def`` endpoint may stream from its connection, in whichever threads the parts are made."""

    @app.get("/")
    def index(conn: SyncConn) -> StreamingResponse:
        conn.execute("insert into ledger values (7), (8)")
        return StreamingResponse(f"{entry};" for (entry,) in conn.execute("select entry from ledger order by 1"))

    assert get(app, "/").text == "7;8;"
    assert (entries(superuser), sync_engine.stats.in_use) == ([7, 8], 0)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_rolled_back(
    app: FastAPI, engine: AsyncEngine, sync_engine: Engine, superuser: psycopg.Connection[Any], ledger: str, kind: str
) -> None:
    """Tests of an application may run its requests in one transaction, and leave nothing behind."""

    @app.post("/async")
    async def write(conn: Conn) -> None:
        await conn.execute("insert into ledger values (7)")

    @app.post("/sync")
    def write_blocking(conn: SyncConn) -> None:
        conn.execute("insert into ledger values (7)")

    @app.get("/async")
    async def read(conn: Conn) -> Any:
        return await (await conn.execute("select entry from ledger")).fetchone()

    @app.get("/sync")
    def read_blocking(conn: SyncConn) -> Any:
        return conn.execute("select entry from ledger").fetchone()

    async def visit() -> None:
        async with client(app) as visitor:
            assert (await visitor.post(f"/{kind}")).status_code == 200
            assert (await visitor.get(f"/{kind}")).json() == [7]

    if kind == "async":

        async def main() -> None:
            async with rolled_back(engine):
                await visit()

        asyncio.run(main())
    else:
        with rolled_back(sync_engine):
            asyncio.run(visit())
    assert entries(superuser) == []


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_tenants_and_transactions(engine: AsyncEngine, sync_engine: Engine, kind: str) -> None:
    """Each request is for the tenant that is made of it, in a transaction as the middleware was told."""

    def tenant(request: HTTPConnection) -> str | None:
        zone = request.query_params.get("zone")
        return None if zone is None else f"options='-c timezone={zone}'"

    app = FastAPI()
    chosen: Any = engine if kind == "async" else sync_engine
    level = psycopg.IsolationLevel.SERIALIZABLE
    app.add_middleware(ServerlessPgMiddleware, engine=chosen, tenant=tenant, isolation_level=level, read_only=True)
    names = ("timezone", "transaction_isolation", "transaction_read_only")
    query = ", ".join(f"current_setting('{name}')" for name in names)

    @app.get("/async")
    async def read(conn: Conn) -> Any:
        return await (await conn.execute(f"select {query}".encode())).fetchone()

    @app.get("/sync")
    def read_blocking(conn: SyncConn) -> Any:
        return conn.execute(f"select {query}".encode()).fetchone()

    assert get(app, f"/{kind}?zone=Asia/Tokyo").json() == ["Asia/Tokyo", "serializable", "on"]
    assert get(app, f"/{kind}?zone=Asia/Kolkata").json() == ["Asia/Kolkata", "serializable", "on"]
    assert get(app, f"/{kind}").json()[0] not in ("Asia/Tokyo", "Asia/Kolkata")


def test_several_engines(make_async_engine: Any, sync_engine: Engine) -> None:
    """Each middleware has a name of its own, and each dependency is made for one."""
    first, second = make_async_engine(max_size=1), make_async_engine(max_size=2)
    app = FastAPI()
    app.add_middleware(ServerlessPgMiddleware, engine=first, name="first")
    app.add_middleware(ServerlessPgMiddleware, engine=second, name="second")
    app.add_middleware(ServerlessPgMiddleware, engine=sync_engine, name="third")

    @app.get("/")
    async def index(
        one: Annotated[Any, Depends(connection_of("first"))],
        two: Annotated[Any, Depends(connection_of("second"))],
        three: Annotated[Any, Depends(sync_connection_of("third"))],
    ) -> list[bool]:
        return [one is await first.connection, two is await second.connection, three is sync_engine.connection]

    assert get(app, "/").json() == [True, True, True]


@pytest.mark.parametrize("dependency", [connection, sync_connection, connection_of("sync_db")])
def test_no_middleware(sync_engine: Engine, dependency: Any) -> None:
    """Without a middleware of its kind and name a dependency says which one is missing."""
    app = FastAPI()
    if dependency is not sync_connection:
        app.add_middleware(ServerlessPgMiddleware, engine=sync_engine)

    @app.get("/")
    async def index(conn: Any = Depends(dependency)) -> None: ...

    with pytest.raises(RuntimeError, match=r"no ServerlessPgMiddleware with an (Async)?Engine serves .*db'"):
        asyncio.run(run_asgi(app, http_scope("/")))


def test_websocket_has_no_connection(app: FastAPI, engine: AsyncEngine) -> None:
    """A websocket that asks for a connection hears how to take one for each use."""

    @app.websocket("/")
    async def talk(websocket: WebSocket, conn: Conn) -> None:
        raise AssertionError

    with pytest.raises(RuntimeError, match=r"one for each use, by `async with engine.request\(\)"):
        asyncio.run(run_asgi(app, http_scope("/", type="websocket", subprotocols=[])))
    assert engine.stats.connects == 0


def test_streaming_endpoint(app: FastAPI, engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """The connection of the dependency serves the streamed body, in each version of FastAPI."""

    @app.get("/")
    async def index(conn: Conn) -> StreamingResponse:
        await conn.execute("insert into ledger values (7)")

        async def body() -> AsyncIterator[bytes]:
            async for (entry,) in await conn.execute("select entry from ledger"):
                yield b"%d" % entry

        return StreamingResponse(body())

    assert get(app, "/").text == "7"
    assert (entries(superuser), engine.stats.in_use, engine.stats.rollbacks) == ([7], 0, 0)


def test_dependency_with_an_exit(
    app: FastAPI, engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]
) -> None:
    """The exit of a dependency belongs to the transaction where FastAPI runs it before the answer: from 0.106 to 0.117,
    and by ``scope="function"`` since 0.121."""
    seen: list[str] = []
    function_scope: dict[str, Any] = {"scope": "function"} if VERSION >= (0, 121) else {}

    async def audit(conn: Conn) -> AsyncIterator[None]:
        yield
        await conn.execute("insert into ledger values (8)")
        seen.append("exit")

    @app.get("/")
    async def index(conn: Conn, audited: None = Depends(audit, **function_scope)) -> None:
        await conn.execute("insert into ledger values (7)")

    if not function_scope and not (0, 106) <= VERSION < (0, 118):
        pytest.skip("this FastAPI runs the exits of dependencies after the answer")
    assert get(app, "/").status_code == 200
    assert (entries(superuser), seen) == ([7, 8], ["exit"])


def test_background_tasks(app: FastAPI, engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """FastAPI's background tasks run after the commit, and take requests of their own."""

    async def write_both() -> None:
        assert entries(superuser) == [7]
        async with engine.request() as one, engine.request(join=False) as two:
            await one.execute("insert into ledger values (8)")
            await two.execute("insert into ledger values (9)")

    @app.get("/")
    async def index(conn: Conn, tasks: BackgroundTasks) -> None:
        await conn.execute("insert into ledger values (7)")
        tasks.add_task(write_both)

    assert get(app, "/").status_code == 200
    assert (entries(superuser), engine.stats.in_use) == ([7, 8, 9], 0)
