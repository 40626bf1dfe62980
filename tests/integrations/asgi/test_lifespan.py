"""Start, end, and settings."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from asgi_support import Message, get, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support import eventually, sessions

from serverless_pg_kit import AsyncEngine, Engine, SettingsError, aws_lambda, default_async_engine
from serverless_pg_kit.settings import CHECKS
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_asgi import ServerlessPgMiddleware


async def fleet_name(request: Request) -> Response:
    """A view that answers what the server knows its connection as."""
    conn = await request.state.db.connection
    cursor = await conn.execute("select current_setting('application_name')")
    return PlainTextResponse((await cursor.fetchone())[0])


def application(lifespan: Any = None, **options: Any) -> Starlette:
    """An application whose middleware was given `options`."""
    app = Starlette(routes=[Route("/", fleet_name)], lifespan=lifespan)
    app.add_middleware(ServerlessPgMiddleware, **options)
    return app


def lifespan_messages(app: Any) -> list[Message]:
    """Return what `app` says from its start to its end."""
    incoming: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    said: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        said.append(message)

    asyncio.run(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    return said


def test_settings_by_name(server: PostgresServer) -> None:
    """Single settings make an engine."""
    assert get(application(conninfo=server.dsn, application_name="by name"), "/").text == "by name"


def test_default_engine(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without engine and settings the middleware takes the default engine, which reads the environment."""
    monkeypatch.setattr(aws_lambda, "_defaults", {})
    monkeypatch.setenv("DATABASE_URL", server.dsn)
    monkeypatch.setenv("SERVERLESS_PG_APPLICATION_NAME", "by default")

    assert get(application(), "/").text == "by default"
    assert default_async_engine().stats.commits == 1
    asyncio.run(default_async_engine().close())


BAD: dict[str, dict[str, Any]] = {
    **{rf"^{name}\b": {name: object()} for name in CHECKS},
    r"max_sizes=3.* did you mean max_size\?": {"max_sizes": 3},
    r"^deadline=0 is not allowed": {"deadline": 0},
    r"^deadline='soon' is not allowed": {"deadline": "soon"},
    r"^rollback_on='5xx' is not allowed": {"rollback_on": "5xx"},
    r"^engine has to be an AsyncEngine or an Engine, not str": {"engine": "postgresql://"},
    r"^pass an engine or single settings, not both: max_size$": {"engine": Engine(), "max_size": 3},
}
"""What is wrong with settings, by the message that tells it."""


@pytest.mark.parametrize(("message", "options"), BAD.items(), ids=[next(iter(options)) for options in BAD.values()])
def test_bad_settings_fail_at_start(message: str, options: dict[str, Any]) -> None:
    """What is wrong is named at the start of the application, and by each request."""
    with pytest.raises((SettingsError, TypeError), match=message):
        lifespan_messages(application(**options))
    assert get(application(**options), "/").status_code == 500


def test_bad_settings_end_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """A real server does not start with bad settings, and logs which one it is."""
    server = uvicorn.Server(uvicorn.Config(application(max_size=0), port=0, log_config=None))

    def run() -> None:
        with suppress(SystemExit):
            server.run()

    thread = threading.Thread(target=run)
    with caplog.at_level(logging.ERROR, "uvicorn.error"):
        thread.start()
        thread.join(30)

    assert not thread.is_alive()
    assert not server.started
    assert "max_size=0 is not allowed" in caplog.text


@pytest.mark.parametrize("kind", [AsyncEngine, Engine])
def test_close_at_shutdown(server: PostgresServer, fleet: str, superuser: psycopg.Connection[Any], kind: Any) -> None:
    """The engine is closed after the application's own shutdown, which may still use it."""
    engine = kind(conninfo=server.dsn, application_name=fleet)
    used: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        if kind is AsyncEngine:
            async with engine.request() as conn:
                await conn.execute("select 1")
        else:
            with engine.request() as conn:
                conn.execute("select 1")
        used.append("at shutdown")

    said = lifespan_messages(application(lifespan, engine=engine, close_at_shutdown=True))

    assert [message["type"] for message in said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert used == ["at shutdown"]
    assert eventually(lambda: sessions(superuser, fleet) == [])


@pytest.mark.parametrize(("closes", "name"), [(False, None), (True, "function")])
def test_engine_outlives_the_lifespan(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, closes: bool, name: str | None
) -> None:
    """Connections survive the lifespan, unless it is to close them and this is not AWS Lambda."""
    if name is not None:
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", name)
    app = application(engine=engine, close_at_shutdown=closes)

    assert get(app, "/").status_code == 200
    lifespan_messages(app)
    assert engine.stats.open == 1


def test_lifespan_state(engine: AsyncEngine) -> None:
    """What the lifespan shares with requests reaches them beside our own."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        yield {"greeting": "hello"}

    async def view(request: Request) -> Response:
        assert (await request.state.db.connection) is (await engine.connection)
        return PlainTextResponse(request.state.greeting)

    app = Starlette(routes=[Route("/", view)], lifespan=lifespan)
    app.add_middleware(ServerlessPgMiddleware, engine=engine)
    with serving(app) as url:
        assert httpx.get(url).text == "hello"
