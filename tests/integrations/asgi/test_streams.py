"""Answers in parts, clients that leave, and what runs after an answer or beside it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from aio_support import sleepers
from asgi_support import Message, get, http_scope, run_asgi, serving
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from support import entries, eventually

from serverless_pg_kit import AsyncEngine
from serverless_pg_kit_asgi import ServerlessPgMiddleware


def application(engine: AsyncEngine, view: Any) -> Starlette:
    """An application with one `view`."""
    return Starlette(routes=[Route("/", view)], middleware=[Middleware(ServerlessPgMiddleware, engine=engine)])


def streams(engine: AsyncEngine, parts: int, gate: asyncio.Event | None = None, **options: Any) -> Any:
    """A view that writes 7, and then streams `parts` numbers from its connection; before the third it waits for `gate`.

    `options` are those of the response.
    """

    async def view(request: Request) -> Response:
        conn = await engine.connection
        await conn.execute("insert into ledger values (7)")

        async def body() -> AsyncIterator[bytes]:
            cursor = await conn.execute("select n from generate_series(1, %s) n", [parts])
            async for (number,) in cursor:
                if number == 3 and gate is not None:
                    await gate.wait()
                yield b"%d;" % number

        return StreamingResponse(body(), **options)

    return view


def test_stream_keeps_its_connection(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """A streamed body reads from the connection to its last part; then it is committed and given back."""
    seen: list[tuple[bytes, int, list[int]]] = []

    def heard(message: Message) -> None:
        seen.append((message.get("body", b"head"), engine.stats.in_use, entries(superuser)))

    asyncio.run(run_asgi(application(engine, streams(engine, 2)), http_scope("/"), heard))

    assert seen == [(b"head", 1, []), (b"1;", 1, []), (b"2;", 1, []), (b"", 0, [7])]


def test_stream_of_announced_length(engine: AsyncEngine, ledger: str) -> None:
    """The part that completes the announced length is the last one, even if an empty one follows."""
    seen: list[tuple[bytes, int]] = []

    def heard(message: Message) -> None:
        seen.append((message.get("body", b"head"), engine.stats.in_use))

    view = streams(engine, 2, headers={"content-length": "4"})
    asyncio.run(run_asgi(application(engine, view), http_scope("/"), heard))

    assert seen == [(b"head", 1), (b"1;", 1), (b"2;", 0), (b"", 0)]


def test_head_of_a_stream_goes_out_at_once(engine: AsyncEngine, ledger: str) -> None:
    """A client that waits for the head of a stream, as of server-sent events, gets it before the first part."""

    async def view(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            await asyncio.wait_for(head.wait(), 30)
            yield b"late"

        return StreamingResponse(body())

    def heard(message: Message) -> None:
        if message["type"] == "http.response.start":
            head.set()

    async def visit() -> list[Message]:
        return await run_asgi(application(engine, view), http_scope("/"), heard)

    head = asyncio.Event()
    assert [message.get("body") for message in asyncio.run(visit())] == [None, b"late", b""]


def test_error_in_a_stream(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """An exception in the middle of a stream rolls back."""

    async def view(request: Request) -> Response:
        conn = await engine.connection
        await conn.execute("insert into ledger values (7)")

        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            await conn.execute("select 1/0")

        return StreamingResponse(body())

    with pytest.raises(psycopg.errors.DivisionByZero):
        asyncio.run(run_asgi(application(engine, view), http_scope("/")))
    assert (entries(superuser), engine.stats.in_use, engine.stats.open) == ([], 0, 1)


def leave(url: str, parts: bytes) -> None:
    """Ask for `url` and hang up when the answer contains `parts`."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port or 80), timeout=30) as line:
        line.sendall(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        heard = b""
        while parts not in heard:
            heard += line.recv(4096)


def test_client_leaves_a_stream(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """A client that hangs up in the middle of a stream has its request rolled back, the connection is kept."""
    with serving(application(engine, streams(engine, 5, asyncio.Event()))) as url:
        leave(url, b"2;")
        assert eventually(lambda: engine.stats.in_use == 0)
        assert (entries(superuser), engine.stats.rollbacks) == ([], 1)
        assert eventually(lambda: engine.stats.open <= 1)


def test_client_leaves_during_a_statement(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """When the client of a stream hangs up, the statement that runs for it is cancelled on the server."""

    async def view(request: Request) -> Response:
        conn = await engine.connection

        async def body() -> AsyncIterator[bytes]:
            yield b"2;"
            await conn.execute("select pg_sleep(600)")

        return StreamingResponse(body())

    with serving(application(engine, view)) as url:
        leave(url, b"2;")
        assert eventually(lambda: engine.stats.in_use == 0)
        assert sleepers(superuser, engine) == 0


def test_client_leaves_before_the_answer(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """A client that does not wait for a plain answer changes nothing: the request runs to its end and commits."""

    async def view(request: Request) -> Response:
        conn = await engine.connection
        await conn.execute("insert into ledger values (7)")
        while not await request.is_disconnected():
            await asyncio.sleep(0.005)
        return PlainTextResponse("nobody hears this")

    with serving(application(engine, view)) as url:
        leave(url, b"")
        assert eventually(lambda: entries(superuser) == [7])
        assert eventually(lambda: engine.stats.in_use == 0)


def test_stream_that_is_abandoned(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """An application that stops in the middle of a body, without an exception, has its request rolled back."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (await engine.connection).execute("insert into ledger values (7)")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})

    asyncio.run(run_asgi(ServerlessPgMiddleware(app, engine), http_scope("/")))

    assert (entries(superuser), engine.stats.in_use) == ([], 0)


def test_cancelled_request(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """A request that its server cancels rolls back and gives its connection back in order."""

    async def view(request: Request) -> Response:
        conn = await engine.connection
        await conn.execute("insert into ledger values (7)")
        await conn.execute("select pg_sleep(600)")
        raise AssertionError

    async def visit() -> None:
        task = asyncio.create_task(run_asgi(application(engine, view), http_scope("/")))
        while not sleepers(superuser, engine):
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with engine.request() as conn:
            await conn.execute("insert into ledger values (8)")

    asyncio.run(visit())

    assert (entries(superuser), engine.stats.in_use, engine.stats.connects) == ([8], 0, 1)


def test_time_out_in_a_view(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """A view that answers 504 after a time-out of its own around a statement leaves nothing behind."""

    async def view(request: Request) -> Response:
        conn = await engine.connection
        await conn.execute("insert into ledger values (7)")
        try:
            await asyncio.wait_for(conn.execute("select pg_sleep(600)"), 0.05)
        except asyncio.TimeoutError:
            return PlainTextResponse("late", 504)
        raise AssertionError

    assert get(application(engine, view), "/").status_code == 504
    assert (entries(superuser), engine.stats.in_use) == ([], 0)


def test_background_task(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """A background task runs when its request is committed; it has no connection but by a request of its own."""
    seen: list[Any] = []

    async def later() -> None:
        seen.append((entries(superuser), engine.stats.in_use))
        with pytest.raises(RuntimeError, match="no request is open"):
            await engine.connection
        async with engine.request() as conn:
            await conn.execute("insert into ledger values (8)")

    async def view(request: Request) -> Response:
        await (await engine.connection).execute("insert into ledger values (7)")
        return PlainTextResponse("done", background=BackgroundTask(later))

    assert get(application(engine, view), "/").text == "done"
    assert (seen, entries(superuser), engine.stats.connects) == ([([7], 0)], [7, 8], 1)


def test_no_background_without_a_commit(engine: AsyncEngine, ledger: str) -> None:
    """A background task does not run for a request whose COMMIT failed."""

    async def later() -> None:
        raise AssertionError

    async def view(request: Request) -> Response:
        await (await engine.connection).execute("insert into ledger values (7), (7)")
        return PlainTextResponse("done", background=BackgroundTask(later))

    assert get(application(engine, view), "/").status_code == 500


def chat(app: ASGIApp, *said: str) -> list[Message]:
    """Return what `app` sends on a websocket on which a client says something, and then leaves."""
    incoming: list[Message] = [{"type": "websocket.connect"}]
    incoming += [{"type": "websocket.receive", "text": text} for text in said]
    incoming.append({"type": "websocket.disconnect", "code": 1000})
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = http_scope("/", type="websocket", subprotocols=[])
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return sent


def test_websocket(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """A websocket holds no connection: each use is a request of its own, committed by itself."""

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            async with engine.request() as conn:
                await conn.execute("insert into ledger values (%s)", [int(text)])
            await websocket.send_text(f"{entries(superuser)} {engine.stats.in_use}")

    app = ServerlessPgMiddleware(Starlette(routes=[WebSocketRoute("/", talk)]), engine)

    assert [message.get("text") for message in chat(app, "7", "8")] == [None, "[7] 0", "[7, 8] 0"]
    assert engine.stats.connects == 1
