"""``resolve_async``: both middlewares, in routes that are async and in others."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import BadRequestError, ServiceError
from powertools_support import event_of, status_of
from support import entries

from serverless_pg_kit import AsyncEngine, Engine, TransactionFailed, aws_lambda
from serverless_pg_kit_powertools import AsyncPostgresMiddleware, PostgresMiddleware

if not hasattr(APIGatewayHttpResolver, "resolve_async"):
    pytest.skip("resolve_async came with Powertools 3.29", allow_module_level=True)

EVENT = event_of("api_gateway_v2")


def raises(error: Exception) -> Any:
    """Return what raises `error`."""

    def answer() -> Any:
        raise error

    return answer


ANSWERS: list[tuple[str, Any, int | None, bool]] = [
    ("dict", lambda: {"id": 7}, 200, True),
    ("returns 404", lambda: ({"error": "none"}, 404), 404, True),
    ("returns 500", lambda: ({"error": "broken"}, 500), 500, False),
    ("Response 503", lambda: Response(503, "text/plain", "later"), 503, False),
    ("BadRequestError", raises(BadRequestError("what?")), 400, True),
    ("ServiceError 503", raises(ServiceError(503, "later")), 503, False),
    ("raises", raises(LookupError("mine")), None, False),
]


def resolve(app: Any, context: Any, event: Any = EVENT) -> Any:
    """Resolve `event` as a function does that is not async itself."""
    return asyncio.run(app.resolve_async(event, context))


def check(app: Any, context: Any, superuser: Any, case: tuple[str, Any, int | None, bool]) -> None:
    """Check what `app` answers and whether what its route wrote is kept; then empty the ledger."""
    said, _, status, kept = case
    if status is None:
        with pytest.raises(LookupError, match="mine"):
            resolve(app, context)
    else:
        assert status_of(resolve(app, context)) == status, said
    assert entries(superuser) == ([1] if kept else []), said
    assert "db" not in app.context, said
    superuser.execute("truncate ledger")


@pytest.mark.parametrize("times", [1, 2], ids=["alone", "nested"])
def test_answer_decides(async_engine: AsyncEngine, superuser: Any, ledger: str, context: Any, times: int) -> None:
    """With an AsyncEngine: the status decides, and an exception rolls back; nothing is left in the context."""
    for case in ANSWERS:
        app: Any = APIGatewayHttpResolver()
        app.use(middlewares=[AsyncPostgresMiddleware(async_engine)] * times)

        @app.get("/orders/7")
        async def route(app: Any = app, answer: Any = case[1]) -> Any:
            conn = await app.context["db"].connection
            assert conn is await async_engine.connection
            await conn.execute("insert into ledger values (1)")
            return answer()

        check(app, context, superuser, case)
    assert (async_engine.stats.connects, async_engine.stats.in_use) == (1, 0)


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_blocking_engine(engine: Engine, superuser: Any, ledger: str, context: Any, is_async: bool) -> None:
    """The blocking middleware, which Powertools runs in a thread, does its duty there, too."""
    for case in ANSWERS:
        app: Any = APIGatewayHttpResolver()
        app.use(middlewares=[PostgresMiddleware(engine)])

        def blocking(app: Any = app, answer: Any = case[1]) -> Any:
            assert app.context["db"].connection is engine.connection
            engine.connection.execute("insert into ledger values (1)")
            return answer()

        async def awaiting(blocking: Any = blocking) -> Any:
            return blocking()

        app.get("/orders/7")(awaiting if is_async else blocking)
        check(app, context, superuser, case)
        assert engine.stats.in_use == 0, case[0]


def test_nothing_is_acquired_where_nothing_is_found(async_engine: AsyncEngine, context: Any) -> None:
    """The 404 route costs no connection."""
    app: Any = APIGatewayHttpResolver()
    app.use(middlewares=[AsyncPostgresMiddleware(async_engine)])
    assert status_of(resolve(app, context)) == 404
    assert async_engine.stats.connects == 0


def test_one_connection_for_many_loops(async_engine: AsyncEngine, context: Any) -> None:
    """A function that starts a loop for each invocation keeps its connection."""
    app: Any = APIGatewayHttpResolver()
    app.use(middlewares=[AsyncPostgresMiddleware(async_engine)])

    @app.get("/orders/7")
    async def route() -> Any:
        conn = await app.context["db"].connection
        return str(conn.info.backend_pid)

    assert len({resolve(app, context)["body"] for _ in range(3)}) == 1


def test_cancelled_request_is_rolled_back(async_engine: AsyncEngine, superuser: Any, ledger: str, context: Any) -> None:
    """An invocation that gives up in the middle of a statement keeps nothing and gives the connection back."""
    app: Any = APIGatewayHttpResolver()
    app.use(middlewares=[AsyncPostgresMiddleware(async_engine)])

    @app.get("/orders/7")
    async def route() -> Any:
        conn = await app.context["db"].connection
        await conn.execute("insert into ledger values (1)")
        await conn.execute("select pg_sleep(60)")

    async def impatient() -> None:
        await asyncio.wait_for(app.resolve_async(EVENT, context), 0.5)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(impatient())
    assert entries(superuser) == []
    assert async_engine.stats.in_use == 0
    assert "db" not in app.context


def test_swallowed_database_error_is_told(async_engine: AsyncEngine, context: Any) -> None:
    """A good answer after a failed transaction would be a lie."""
    app: Any = APIGatewayHttpResolver()
    app.use(middlewares=[AsyncPostgresMiddleware(async_engine)])

    @app.get("/orders/7")
    async def route() -> Any:
        conn = await app.context["db"].connection
        try:
            await conn.execute("select 1/0")
        except Exception:
            return {}

    with pytest.raises(TransactionFailed):
        resolve(app, context)


def test_default_engine(async_engine: AsyncEngine, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an engine there is one for the process."""
    monkeypatch.setitem(aws_lambda._defaults, AsyncEngine, async_engine)
    app: Any = APIGatewayHttpResolver()

    @app.get("/orders/7", middlewares=[AsyncPostgresMiddleware(rollback_on={418}, key="orders")])
    async def route() -> Any:
        await (await app.context["orders"].connection).execute("select 1")
        return {}, 418

    assert status_of(resolve(app, context)) == 418
    assert async_engine.stats.rollbacks == 1


def test_kinds_of_engines_are_not_mixed_up(engine: Engine, async_engine: AsyncEngine) -> None:
    """Each middleware refuses the other's engine, and names the other."""
    with pytest.raises(TypeError, match="AsyncPostgresMiddleware takes an AsyncEngine"):
        PostgresMiddleware(async_engine)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="PostgresMiddleware takes an Engine"):
        AsyncPostgresMiddleware(engine)  # type: ignore[arg-type]


def test_asyncio_is_not_loaded_for_blocking_functions() -> None:
    """The blocking middleware does not load the async shell."""
    import subprocess

    code = (
        "import sys, serverless_pg_kit_powertools as kit; kit.PostgresMiddleware()\n"
        "assert 'serverless_pg_kit.aio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
