"""What becomes of a request's transaction, and of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import psycopg
import pytest
from asgi_support import Message, get, http_scope, run_asgi, serving
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from support import entries

from serverless_pg_kit import AsyncEngine
from serverless_pg_kit_asgi import ServerlessPgMiddleware

DOUBLE = "insert into ledger values (7), (7)"
"""Fails at COMMIT: the key of the ledger is deferred."""


def application(engine: AsyncEngine, view: Any, *inner: Middleware, **options: Any) -> Starlette:
    """An application with one `view`; `options` are the middleware's, except for ``handlers``."""
    handlers = options.pop("handlers", None)
    outer = Middleware(ServerlessPgMiddleware, engine=engine, **options)
    return Starlette(routes=[Route("/", view)], middleware=[outer, *inner], exception_handlers=handlers)


def writes(engine: AsyncEngine, statement: str, respond: Callable[[], Response]) -> Any:
    """A view that executes `statement` and answers what `respond` returns or raises."""

    async def view(request: Request) -> Response:
        await (await engine.connection).execute(statement.encode())
        return respond()

    return view


@pytest.mark.parametrize(
    ("status", "kept"), [(200, [7]), (204, [7]), (302, [7]), (404, [7]), (409, [7]), (500, []), (503, [])]
)
def test_status_decides(
    engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any], status: int, kept: list[int]
) -> None:
    """An answer below 500 commits, any other rolls back, and it is the view's own answer."""
    view = writes(engine, "insert into ledger values (7)", lambda: Response(status_code=status))

    assert get(application(engine, view), "/").status_code == status
    assert entries(superuser) == kept
    assert engine.stats.in_use == 0


@pytest.mark.parametrize(("status", "kept"), [(404, []), (200, [7]), (500, [7])])
def test_rollback_on(
    engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any], status: int, kept: list[int]
) -> None:
    """`rollback_on` alone decides by the status, in both directions."""
    view = writes(engine, "insert into ledger values (7)", lambda: Response(status_code=status))

    assert get(application(engine, view, rollback_on={404}), "/").status_code == status
    assert entries(superuser) == kept


def test_exception_rolls_back(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """An exception that nobody handles rolls back."""
    view = writes(engine, "insert into ledger values (7)", lambda: 1 / 0)  # type: ignore[arg-type, return-value]

    assert get(application(engine, view), "/").status_code == 500
    assert (entries(superuser), engine.stats.rollbacks) == ([], 1)


def test_handled_exception_is_its_answer(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """An exception that became an answer is judged by that answer: a 404 commits."""

    def refuse() -> Response:
        raise HTTPException(404)

    assert get(application(engine, writes(engine, "insert into ledger values (7)", refuse)), "/").status_code == 404
    assert entries(superuser) == [7]


def test_view_may_ask_for_rollback(engine: AsyncEngine, ledger: str, superuser: psycopg.Connection[Any]) -> None:
    """``request.state.db.fail()`` rolls back, whatever the answer."""

    async def view(request: Request) -> Response:
        assert await request.state.db.connection is await engine.connection
        await (await engine.connection).execute("insert into ledger values (7)")
        request.state.db.fail()
        return PlainTextResponse("no")

    assert get(application(engine, view), "/").text == "no"
    assert entries(superuser) == []


def test_untouched_request(engine: AsyncEngine) -> None:
    """A request that does not touch its connection acquires none."""

    async def view(request: Request) -> Response:
        return PlainTextResponse("fine")

    assert get(application(engine, view), "/").text == "fine"
    assert engine.stats.connects == 0


def test_handled_unique_violation(engine: AsyncEngine, superuser: psycopg.Connection[Any], ledger: str) -> None:
    """A violation that is answered with 409 rolls back without another error."""

    async def conflict(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "taken"}, 409)

    statement = "insert into ledger values (7); set constraints all immediate; insert into ledger values (7)"
    view = writes(engine, statement, Response)
    app = application(engine, view, handlers={psycopg.errors.UniqueViolation: conflict})

    assert get(app, "/").status_code == 409
    assert (entries(superuser), engine.stats.in_use, engine.stats.open) == ([], 0, 1)


def test_swallowed_violation(engine: AsyncEngine, superuser: psycopg.Connection[Any], ledger: str) -> None:
    """A view that swallows a database error and answers 200 becomes a 500: nothing was committed."""

    async def view(request: Request) -> Response:
        conn = await engine.connection
        await conn.execute("insert into ledger values (7)")
        with suppress(psycopg.errors.DivisionByZero):
            await conn.execute("select 1/0")
        return PlainTextResponse("done")

    assert get(application(engine, view), "/").status_code == 500
    assert entries(superuser) == []


INNER = {
    "none": (),
    "copying": (Middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request)),),
    "gzip": (Middleware(GZipMiddleware, minimum_size=1),),
}
"""Middleware between ours and the view: some copy the body in parts."""


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_failed_commit_is_500(
    engine: AsyncEngine, superuser: psycopg.Connection[Any], ledger: str, inner: tuple[Middleware, ...]
) -> None:
    """A COMMIT that fails turns the view's 200 into a 500, and the error reaches the handler for all exceptions."""
    seen: list[Exception] = []

    async def failed(request: Request, error: Exception) -> Response:
        seen.append(error)
        return PlainTextResponse("not done", 503)

    async def unseen(request: Request, error: Exception) -> Response:
        raise AssertionError

    view = writes(engine, DOUBLE, lambda: PlainTextResponse("done"))
    app = application(engine, view, *inner, handlers={Exception: failed, psycopg.Error: unseen})
    answer = get(app, "/")

    assert (answer.status_code, answer.text) == (503, "not done")
    assert [type(error) for error in seen] == [psycopg.errors.UniqueViolation]
    assert entries(superuser) == []


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_commit_precedes_the_answer(
    engine: AsyncEngine, superuser: psycopg.Connection[Any], ledger: str, inner: tuple[Middleware, ...]
) -> None:
    """When the head of a plain answer goes out, its transaction is committed and its connection given back."""
    view = writes(engine, "insert into ledger values (7)", lambda: PlainTextResponse("done"))
    seen = []

    def heard(message: Message) -> None:
        seen.append((message["type"], entries(superuser), engine.stats.in_use))

    asyncio.run(run_asgi(application(engine, view, *inner), http_scope("/"), heard))

    assert seen[0] == ("http.response.start", [7], 0)


def test_failed_commit_without_a_body(engine: AsyncEngine, superuser: psycopg.Connection[Any], ledger: str) -> None:
    """An answer that has no body, and announces no length for it, waits for COMMIT as well."""
    view = writes(engine, DOUBLE, lambda: Response(status_code=204))

    assert get(application(engine, view), "/").status_code == 500
    assert entries(superuser) == []


def test_failed_commit_of_a_stream(engine: AsyncEngine, superuser: psycopg.Connection[Any], ledger: str) -> None:
    """A COMMIT that fails after a stream leaves the answer incomplete, and the client sees that."""
    view = writes(engine, DOUBLE, lambda: StreamingResponse(iter([b"one", b"two"])))

    with serving(application(engine, view)) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url)
    assert entries(superuser) == []


class Catching:
    """Middleware that answers every exception by itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except psycopg.Error as error:
            await PlainTextResponse(type(error).__name__, 409)(scope, receive, send)


def test_failed_commit_that_is_answered(engine: AsyncEngine, superuser: psycopg.Connection[Any], ledger: str) -> None:
    """Middleware inside of ours can answer a COMMIT that failed: nothing has gone out yet."""
    view = writes(engine, DOUBLE, lambda: PlainTextResponse("done"))
    app = ServerlessPgMiddleware(Catching(Starlette(routes=[Route("/", view)])), engine)
    sent = asyncio.run(run_asgi(app, http_scope("/")))

    assert [(message.get("status"), message.get("body")) for message in sent] == [
        (409, None),
        (None, b"UniqueViolation"),
    ]
    assert (entries(superuser), engine.stats.in_use) == ([], 0)


class Swallowing:
    """Middleware that takes no notice of exceptions."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(Exception):
            await self.app(scope, receive, send)


def test_failed_commit_that_is_swallowed(engine: AsyncEngine, superuser: psycopg.Connection[Any], ledger: str) -> None:
    """A COMMIT that failed is raised, even if the application takes no notice of it."""
    view = writes(engine, DOUBLE, lambda: PlainTextResponse("done"))
    app = ServerlessPgMiddleware(Swallowing(Starlette(routes=[Route("/", view)])), engine)

    with pytest.raises(psycopg.errors.UniqueViolation):
        asyncio.run(run_asgi(app, http_scope("/")))


class RaisingLate:
    """Middleware that fails when the answer is out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
        raise ValueError("late")


def test_exception_after_the_answer(engine: AsyncEngine, superuser: psycopg.Connection[Any], ledger: str) -> None:
    """An exception of something else after the answer changes nothing: it is committed, the connection given back."""
    view = writes(engine, "insert into ledger values (7)", lambda: PlainTextResponse("done"))
    app = ServerlessPgMiddleware(RaisingLate(Starlette(routes=[Route("/", view)])), engine)

    with pytest.raises(ValueError, match="late"):
        asyncio.run(run_asgi(app, http_scope("/")))
    assert (entries(superuser), engine.stats.in_use, engine.stats.open) == ([7], 0, 1)


def test_file_that_the_server_sends(engine: AsyncEngine, superuser: psycopg.Connection[Any], ledger: str) -> None:
    """A body that is named to the server, and not sent in parts, is complete at once."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (await engine.connection).execute("insert into ledger values (7)")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.pathsend", "path": "/tmp/file"})

    asyncio.run(run_asgi(ServerlessPgMiddleware(app, engine), http_scope("/")))

    assert entries(superuser) == [7]
