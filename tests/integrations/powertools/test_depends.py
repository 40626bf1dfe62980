"""``Depends``: what the middleware has begun, as parameters of a route."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import psycopg
import pytest
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, APIGatewayRestResolver, Response
from powertools_support import event_of, status_of
from support import entries

from serverless_pg_kit import AcquireTimeout, AsyncEngine, Engine, Scope, TooManyConnections

try:
    from aws_lambda_powertools.event_handler import Depends
except ImportError:
    pytest.skip("Depends came with Powertools 3.28", allow_module_level=True)

from serverless_pg_kit_powertools import AsyncPostgresMiddleware, PostgresMiddleware, connection, scope

EVENT = event_of("api_gateway_v1")
Conn = psycopg.Connection[Any]


@pytest.mark.parametrize("is_validated", [False, True], ids=["plain", "validated"])
@pytest.mark.parametrize(("status", "kept"), [(200, True), (404, True), (500, False)])
def test_connection(
    engine: Engine, superuser: Any, ledger: str, context: Any, status: int, kept: bool, is_validated: bool
) -> None:
    """A route that asks for it gets the connection, whose transaction ends as the answer says."""
    app: Any = APIGatewayRestResolver(enable_validation=is_validated)
    app.use(middlewares=[PostgresMiddleware(engine)])

    @app.get("/orders/<order_id>")
    def route(order_id: int, conn: Annotated[Conn, Depends(connection)]) -> Any:
        conn.execute("insert into ledger values (%s)", [order_id])
        return {}, status

    assert status_of(app.resolve(EVENT, context)) == status
    assert entries(superuser) == ([7] if kept else [])
    assert engine.stats.in_use == 0


def test_nothing_is_acquired_for_what_validation_refuses(engine: Engine, context: Any) -> None:
    """A request that does not fit the schema costs no connection."""
    app: Any = APIGatewayRestResolver(enable_validation=True)
    app.use(middlewares=[PostgresMiddleware(engine)])

    @app.get("/orders/<order_id>")
    def route(order_id: int, conn: Annotated[Conn, Depends(connection)]) -> Any:
        return {}

    assert status_of(app.resolve(event_of("api_gateway_v1", path="/orders/seven"), context)) == 422
    assert engine.stats.connects == 0


def test_exception_rolls_back(engine: Engine, superuser: Any, ledger: str, context: Any) -> None:
    """What goes wrong after the injection takes everything with it, and the next request begins anew."""
    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine)])
    seen: list[int] = []

    @app.get("/orders/7")
    def route(conn: Annotated[Conn, Depends(connection)]) -> Any:
        conn.execute("insert into ledger values (%s)", [len(seen)])
        seen.append(conn.info.backend_pid)
        if len(seen) == 1:
            raise LookupError("mine")
        return {}

    with pytest.raises(LookupError, match="mine"):
        app.resolve(EVENT, context)
    assert status_of(app.resolve(EVENT, context)) == 200
    assert entries(superuser) == [1]
    assert engine.stats.in_use == 0


def test_scope_is_lazy(engine: Engine, context: Any) -> None:
    """A route that may not need its connection takes the request, which costs none."""
    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine)])

    @app.get("/orders/7")
    def route(db: Annotated[Scope, Depends(scope)]) -> Any:
        return {"has": db.has_connection}

    assert app.resolve(EVENT, context)["body"] == '{"has":false}'
    assert engine.stats.connects == 0


def number(conn: Annotated[Conn, Depends(connection)]) -> Any:
    """A dependency of the user's own."""
    return conn.execute("select 7").fetchone()


def test_dependency_of_dependencies(engine: Engine, context: Any) -> None:
    """What users make of it shares the one connection."""

    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine)])

    @app.get("/orders/7")
    def route(row: Annotated[Any, Depends(number)], conn: Annotated[Conn, Depends(connection)]) -> Any:
        return {"row": row[0], "same": conn is engine.connection}

    assert app.resolve(EVENT, context)["body"] == '{"row":7,"same":true}'
    assert engine.stats.connects == 1


def test_without_middleware_it_says_what_is_missing(context: Any) -> None:
    """A route outside of the middleware learns what it lacks."""
    app: Any = APIGatewayRestResolver()

    @app.get("/orders/7")
    def route(conn: Annotated[Conn, Depends(connection)]) -> Any:
        return {}

    with pytest.raises(Exception, match="has to be around this route"):
        app.resolve(EVENT, context)


def test_server_that_is_down(context: Any) -> None:
    """An acquisition that fails is the user's exception handlers' to answer."""
    engine = Engine(conninfo="host=127.0.0.1 port=1 dbname=app", max_wait=0.2)
    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine)])

    @app.get("/orders/7")
    def route(conn: Annotated[Conn, Depends(connection)]) -> Any:
        return {}

    @app.exception_handler([AcquireTimeout, TooManyConnections])
    def handle(error: Exception) -> Any:
        return Response(503, "text/plain", "later")

    assert status_of(app.resolve(EVENT, context)) == 503
    assert engine.stats.in_use == 0


def test_async(async_engine: AsyncEngine, superuser: Any, ledger: str, context: Any) -> None:
    """With an AsyncEngine a route takes the request and awaits its connection; the other way says so."""
    app: Any = APIGatewayHttpResolver()
    app.use(middlewares=[AsyncPostgresMiddleware(async_engine)])

    @app.get("/orders/7")
    async def route(db: Annotated[Any, Depends(scope)]) -> Any:
        await (await db.connection).execute("insert into ledger values (7)")
        return {}

    @app.get("/wrong")
    async def wrong(conn: Annotated[Any, Depends(connection)]) -> Any:
        return {}

    assert status_of(asyncio.run(app.resolve_async(event_of("api_gateway_v2"), context))) == 200
    assert entries(superuser) == [7]
    with pytest.raises(Exception, match="and await its connection"):
        asyncio.run(app.resolve_async(event_of("api_gateway_v2", path="/wrong"), context))
    assert async_engine.stats.in_use == 0
