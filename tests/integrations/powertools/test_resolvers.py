"""``PostgresMiddleware``: what commits, what rolls back, and what is left behind, in every resolver."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from aws_lambda_powertools.event_handler import (
    ALBResolver,
    APIGatewayHttpResolver,
    APIGatewayRestResolver,
    BedrockAgentResolver,
    CORSConfig,
    LambdaFunctionUrlResolver,
    Response,
    VPCLatticeResolver,
    VPCLatticeV2Resolver,
)
from aws_lambda_powertools.event_handler.api_gateway import Router
from aws_lambda_powertools.event_handler.exceptions import (
    BadRequestError,
    InternalServerError,
    ServiceError,
    UnauthorizedError,
)
from powertools_support import Context, event_of, status_of
from psycopg import IsolationLevel
from support import entries, kill

from serverless_pg_kit import AsyncEngine, Engine, TransactionFailed, aws_lambda, with_db
from serverless_pg_kit_powertools import AsyncPostgresMiddleware, PostgresMiddleware, postgres_middleware

RESOLVERS: dict[str, tuple[Any, str]] = {
    "rest": (APIGatewayRestResolver, "api_gateway_v1"),
    "http": (APIGatewayHttpResolver, "api_gateway_v2"),
    "alb": (ALBResolver, "alb"),
    "url": (LambdaFunctionUrlResolver, "function_url"),
    "lattice": (VPCLatticeResolver, "vpc_lattice_v1"),
    "lattice2": (VPCLatticeV2Resolver, "vpc_lattice_v2"),
    "bedrock": (BedrockAgentResolver, "bedrock_agent"),
}
EVENT = event_of("api_gateway_v1")


def insert(app: Any) -> None:
    """Write a row in the request that is in the resolver's context."""
    app.context["db"].connection.execute("insert into ledger values (1)")


def raises(error: Exception) -> Any:
    """Return what raises `error`."""

    def answer() -> Any:
        raise error

    return answer


ANSWERS: list[tuple[str, Any, int | None, bool]] = [
    ("dict", lambda: {"id": 7}, 200, True),
    ("returns 201", lambda: ({"id": 7}, 201), 201, True),
    ("returns 404", lambda: ({"error": "none"}, 404), 404, True),
    ("returns 500", lambda: ({"error": "broken"}, 500), 500, False),
    ("Response 503", lambda: Response(503, "text/plain", "later"), 503, False),
    ("Response 409", lambda: Response(409, "text/plain", "taken"), 409, True),
    ("BadRequestError", raises(BadRequestError("what?")), 400, True),
    ("UnauthorizedError", raises(UnauthorizedError("who?")), 401, True),
    ("ServiceError 503", raises(ServiceError(503, "later")), 503, False),
    ("InternalServerError", raises(InternalServerError("broken")), 500, False),
    ("raises", raises(LookupError("mine")), None, False),
]
"""What a route does after it has written, the status of the answer (``None``: it raises), and whether it is kept."""


def app_of(resolver: Any, engine: Engine, answer: Any, **options: Any) -> Any:
    """Return a resolver whose route writes a row and answers."""
    app: Any = resolver()
    app.use(middlewares=[PostgresMiddleware(engine, **options)])
    description = {"description": "An order"} if resolver is BedrockAgentResolver else {}

    @app.get("/orders/7", **description)
    def route() -> Any:
        insert(app)
        return answer()

    return app


def check(run: Any, superuser: Any, status: int | None, kept: bool, said: str) -> None:
    """Check what ``run()`` answers (``None``: it raises) and whether what it wrote is kept; then empty the ledger."""
    if status is None:
        with pytest.raises(LookupError, match="mine"):
            run()
    else:
        assert status_of(run()) == status, said
    assert entries(superuser) == ([1] if kept else []), said
    superuser.execute("truncate ledger")


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_answer_decides(engine: Engine, superuser: Any, ledger: str, context: Any, resolver: str) -> None:
    """In each resolver, with an event as AWS sends it: the status decides, and an exception rolls back."""
    kind, name = RESOLVERS[resolver]
    for said, answer, status, kept in ANSWERS:
        app = app_of(kind, engine, answer)
        check(lambda app=app: app.resolve(event_of(name), context), superuser, status, kept, said)
        assert engine.stats.in_use == 0, said
        assert "db" not in app.context, said


@pytest.mark.parametrize(
    ("answer", "kept"), [(ANSWERS[2][1], False), (ANSWERS[3][1], True), (ANSWERS[6][1], False), (ANSWERS[0][1], True)]
)
def test_rollback_on(engine: Engine, superuser: Any, ledger: str, context: Any, answer: Any, kept: bool) -> None:
    """Which statuses roll back is the user's to say, of responses and of ``ServiceError`` alike."""
    app = app_of(APIGatewayRestResolver, engine, answer, rollback_on=range(400, 500))
    app.resolve(EVENT, context)
    assert entries(superuser) == ([1] if kept else [])


def test_exception_handler_answers_after_the_rollback(
    engine: Engine, superuser: Any, ledger: str, context: Any
) -> None:
    """An exception is rolled back even if the resolver makes a fine answer of it."""
    app = app_of(APIGatewayRestResolver, engine, raises(LookupError("mine")))

    @app.exception_handler(LookupError)
    def handle(error: LookupError) -> Any:
        assert "db" not in app.context
        return Response(200, "text/plain", "as if nothing had been")

    assert status_of(app.resolve(EVENT, context)) == 200
    assert entries(superuser) == []


def test_nothing_is_acquired_where_nothing_is_found(engine: Engine, context: Any) -> None:
    """The 404 route and the pre-flight run through the middleware, and cost no connection."""
    app: Any = APIGatewayRestResolver(cors=CORSConfig(allow_origin="*"))
    app.use(middlewares=[PostgresMiddleware(engine)])

    @app.get("/orders")
    def orders() -> Any:
        return app.context["db"].has_connection

    assert status_of(app.resolve(event_of("api_gateway_v1", path="/nowhere"), context)) == 404
    assert status_of(app.resolve(event_of("api_gateway_v1", method="OPTIONS", path="/orders"), context)) == 204
    assert app.resolve(event_of("api_gateway_v1", path="/orders"), context)["body"] == "false"
    assert (engine.stats.connects, engine.stats.in_use) == (0, 0)


def test_404_handler_may_use_the_database(engine: Engine, superuser: Any, ledger: str, context: Any) -> None:
    """A not-found handler of the user's own is inside the request, too."""
    app = app_of(APIGatewayRestResolver, engine, dict)

    @app.not_found
    def missing(error: Exception) -> Any:
        insert(app)
        return Response(404, "text/plain", "none")

    assert status_of(app.resolve(event_of("api_gateway_v1", path="/nowhere"), context)) == 404
    assert entries(superuser) == [1]


@pytest.mark.parametrize("middlewares", [[], [PostgresMiddleware]], ids=["without", "with"])
def test_per_route(engine: Engine, superuser: Any, ledger: str, context: Any, middlewares: list[Any]) -> None:
    """A middleware of one route serves that route only."""
    app: Any = APIGatewayRestResolver()

    @app.get("/orders/7", middlewares=[kind(engine) for kind in middlewares])
    def route() -> Any:
        return {"has": "db" in app.context}

    assert app.resolve(EVENT, context)["body"] == ('{"has":true}' if middlewares else '{"has":false}')


def test_router_sees_the_request(engine: Engine, superuser: Any, ledger: str, context: Any) -> None:
    """A route in another file reaches it by its router, or by the engine."""
    app: Any = APIGatewayRestResolver()
    router: Any = Router()  # type: ignore[no-untyped-call]
    app.use(middlewares=[PostgresMiddleware(engine)])

    @router.get("/orders/<order_id>")
    def route(order_id: str) -> Any:
        assert router.context["db"].connection is engine.connection
        insert(router)
        return {}

    app.include_router(router)
    assert status_of(app.resolve(EVENT, context)) == 200
    assert entries(superuser) == [1]


@pytest.mark.parametrize("outer", ["postgres_middleware", "with_db", "app.use"])
def test_nested(engine: Engine, superuser: Any, ledger: str, context: Any, outer: str) -> None:
    """One inside another, or inside a decorator, is one request, and ends as it would alone."""
    decorate: Any = {"with_db": with_db(engine), "postgres_middleware": postgres_middleware(engine=engine)}
    for said, answer, status, kept in ANSWERS:
        app: Any = APIGatewayRestResolver()
        if outer == "app.use":
            app.use(middlewares=[PostgresMiddleware(engine)])

        @app.get("/orders/7", middlewares=[PostgresMiddleware(engine)])
        def route(app: Any = app, answer: Any = answer) -> Any:
            insert(app)
            return answer()

        def handler(event: Any, context: Any, app: Any = app) -> Any:
            return app.resolve(event, context)

        run = decorate[outer](handler) if outer in decorate else handler
        check(lambda run=run: run(EVENT, context), superuser, status, kept, said)
        assert engine.stats.in_use == 0, said
    assert engine.stats.connects + engine.stats.reuses == len(ANSWERS)


def test_inner_failure_that_is_caught_commits_nothing(
    engine: Engine, superuser: Any, ledger: str, context: Any
) -> None:
    """A middleware between two of ours that hides an exception does not make half of the work permanent."""

    def hide(app: Any, next_middleware: Any) -> Any:
        try:
            return next_middleware(app)
        except LookupError:
            return Response(200, "text/plain", "hidden")

    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine), hide, PostgresMiddleware(engine)])

    @app.get("/orders/7")
    def route() -> Any:
        insert(app)
        raise LookupError

    with pytest.raises(TransactionFailed):
        app.resolve(EVENT, context)
    assert entries(superuser) == []
    assert engine.stats.in_use == 0
    assert "db" not in app.context


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        (lambda: ({"error": "teapot"}, 418), True),
        (lambda: ({"error": "broken"}, 500), False),
        (lambda: {"statusCode": 500}, True),
        (raises(BadRequestError("no")), True),
    ],
)
def test_chain_that_is_cut_short(
    engine: Engine, superuser: Any, ledger: str, context: Any, cut: Any, kept: bool
) -> None:
    """A middleware that answers in place of the route is heard like one; a bare dictionary is a 200."""

    def impatient(app: Any, next_middleware: Any) -> Any:
        insert(app)
        return cut()

    app = app_of(APIGatewayRestResolver, engine, dict)
    app.use(middlewares=[impatient])
    app.resolve(EVENT, context)
    assert entries(superuser) == ([1] if kept else [])


def test_lost_connection(engine: Engine, superuser: Any, ledger: str, context: Any) -> None:
    """A backend that is killed in the middle of a route is an error for the exception handlers, and the next request is
    served."""
    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine)])
    pids: list[int] = []

    @app.get("/orders/7")
    def route() -> Any:
        insert(app)
        pids.append(engine.connection.info.backend_pid)
        if len(pids) == 1:
            kill(superuser, pids[0])
        engine.connection.execute("select 1")
        return {}

    @app.exception_handler(psycopg.OperationalError)
    def handle(error: Exception) -> Any:
        return Response(503, "text/plain", "later")

    assert [status_of(app.resolve(EVENT, context)) for _ in range(2)] == [503, 200]
    assert entries(superuser) == [1]
    assert engine.stats.in_use == 0
    assert len(set(pids)) == 2


def test_threads(engine: Engine, superuser: Any, context: Any) -> None:
    """A process that serves several requests at a time, with a resolver each, gives each its own connection."""
    together = threading.Barrier(4, timeout=60)

    def serve(number: int) -> int:
        @postgres_middleware(engine=engine)
        def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> int:
            together.wait()
            return conn.info.backend_pid

        return int(handler({}, context))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(serve, range(4)))) == 4
    assert engine.stats.in_use == 0


def test_failed_transaction(engine: Engine, context: Any) -> None:
    """A route that swallows a database error is believed if its answer is an error, and told otherwise."""
    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine)])

    @app.get("/orders/<status>")
    def route(status: str) -> Any:
        with pytest.raises(psycopg.errors.DivisionByZero):
            app.context["db"].connection.execute("select 1/0")
        return {}, int(status)

    assert status_of(app.resolve(event_of("api_gateway_v1", path="/orders/422"), context)) == 422
    with pytest.raises(TransactionFailed):
        app.resolve(event_of("api_gateway_v1", path="/orders/200"), context)
    assert (engine.stats.rollbacks, engine.stats.in_use) == (2, 0)


def test_commit_that_fails_reaches_the_exception_handlers(engine: Engine, ledger: str, context: Any) -> None:
    """What the end of the request raises can still change the answer."""
    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine)])

    @app.get("/orders/7")
    def route() -> Any:
        app.context["db"].connection.execute("insert into ledger values (1), (1)")  # the constraint is deferred
        return {}

    @app.exception_handler(psycopg.errors.UniqueViolation)
    def handle(error: Exception) -> Any:
        return Response(409, "text/plain", "taken")

    assert status_of(app.resolve(EVENT, context)) == 409
    assert engine.stats.in_use == 0


def test_deadline_comes_from_the_context(engine: Engine, context: Any) -> None:
    """A route whose query would outlive the invocation answers while there is time; its own deadline goes first."""
    app: Any = APIGatewayRestResolver()

    def sleep() -> Any:
        try:
            engine.connection.execute("select pg_sleep(60)")
        except psycopg.errors.QueryCanceled:
            return {}, 503

    app.get("/short", middlewares=[PostgresMiddleware(engine, deadline=0.3)])(sleep)
    app.get("/orders/7", middlewares=[PostgresMiddleware(engine)])(sleep)
    started = time.monotonic()
    assert status_of(app.resolve(EVENT, Context(1500))) == 503
    assert status_of(app.resolve(event_of("api_gateway_v1", path="/short"), context)) == 503
    assert time.monotonic() - started < 15


def test_transaction_options(engine: Engine, context: Any) -> None:
    """Isolation level, read-only mode and the key in the context are the middleware's own."""
    app: Any = APIGatewayRestResolver()
    options: dict[str, Any] = {"isolation_level": IsolationLevel.SERIALIZABLE, "read_only": True, "key": "orders"}

    @app.get("/orders/7", middlewares=[PostgresMiddleware(engine, **options)])
    def route() -> Any:
        shown = "select current_setting('transaction_isolation') || current_setting('transaction_read_only')"
        return app.context["orders"].connection.execute(shown).fetchone()[0]

    assert app.resolve(EVENT, context)["body"] == "serializableon"


def test_two_databases(engine: Engine, server: Any, superuser: Any, ledger: str, context: Any) -> None:
    """Two engines side by side are two requests, which end alike."""
    other = Engine(conninfo=server.dsn, application_name="other")
    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine), PostgresMiddleware(other, key="reports")])

    @app.get("/orders/7")
    def route() -> Any:
        insert(app)
        app.context["reports"].connection.execute("insert into ledger values (2)")
        return {}, 500

    try:
        assert status_of(app.resolve(EVENT, context)) == 500
        assert (engine.stats.rollbacks, other.stats.rollbacks) == (1, 1)
        assert entries(superuser) == []
    finally:
        other.close()


def test_tenants(engine: Engine, context: Any) -> None:
    """The request may choose whose database it is for."""
    app: Any = APIGatewayRestResolver()

    def tenant(resolver: Any) -> Any:
        return {"options": "-c work_mem=7MB"} if resolver.current_event.path == "/orders/7" else None

    app.use(middlewares=[PostgresMiddleware(engine, conninfo=tenant)])

    @app.get("/orders/<number>")
    def route(number: str) -> Any:
        return app.context["db"].connection.execute("show work_mem").fetchone()[0]

    assert app.resolve(EVENT, context)["body"] == "7MB"
    assert app.resolve(event_of("api_gateway_v1", path="/orders/8"), context)["body"] == "4MB"


def test_default_engine(engine: Engine, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an engine there is one for the process."""
    monkeypatch.setitem(aws_lambda._defaults, Engine, engine)
    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware()])

    @app.get("/orders/7")
    def route() -> Any:
        return app.context["db"].connection.execute("select 7").fetchone()[0], 200

    assert app.resolve(EVENT, context)["body"] == "7"
    assert engine.stats.commits == 1


def test_users_own_context_stays(engine: Engine, context: Any) -> None:
    """What the user keeps under the same key is there again afterwards."""
    seen: list[Any] = []

    def look(app: Any, next_middleware: Any) -> Any:
        response = next_middleware(app)
        seen.append(app.context["db"])
        return response

    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[look, PostgresMiddleware(engine)])
    app.get("/orders/7")(lambda: {})
    app.context["db"] = "mine"
    app.resolve(EVENT, context)
    assert seen == ["mine"]


def test_kept_request_is_of_no_use_afterwards(engine: Engine, context: Any) -> None:
    """Who keeps the request beyond its end gets an error, and not another request's connection."""
    app: Any = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine)])
    kept: list[Any] = []
    app.get("/orders/7")(lambda: {"kept": str(kept.append(app.context["db"]))})  # type: ignore[func-returns-value]
    app.resolve(EVENT, context)
    with pytest.raises(RuntimeError, match="has ended"):
        kept[0].connection  # noqa: B018 - the property acquires


@pytest.mark.parametrize(("status", "kept"), [(200, True), (500, False)])
def test_async_form(
    async_engine: AsyncEngine, superuser: Any, ledger: str, context: Any, status: int, kept: bool
) -> None:
    """On every Python the async middleware is taken for a coroutine function, and has a name."""
    middleware = AsyncPostgresMiddleware(async_engine)
    app: Any = APIGatewayHttpResolver()
    app.lambda_context = context

    async def route(app: Any) -> Any:
        await (await app.context["db"].connection).execute("insert into ledger values (1)")
        return Response(status, "text/plain", "")

    assert inspect.iscoroutinefunction(middleware)
    assert middleware.__name__ == "AsyncPostgresMiddleware"
    assert asyncio.run(middleware(app, route)).status_code == status
    assert entries(superuser) == ([1] if kept else [])
    assert async_engine.stats.in_use == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [({"engine": "postgres://"}, "class Engine, not str"), ({"rollback_on": 500}, "container of statuses")],
)
def test_misuse_is_told(options: Any, error: str) -> None:
    """What cannot work is refused when the middleware is made."""
    with pytest.raises(TypeError, match=error):
        PostgresMiddleware(**options)
