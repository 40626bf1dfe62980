"""Middlewares of the event handler's resolvers: one request of an engine for each request that is routed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.event_handler.middlewares import BaseMiddlewareHandler
from psycopg import IsolationLevel

from serverless_pg_kit import Engine, default_async_engine, default_engine
from serverless_pg_kit.conninfo import Conninfo
from serverless_pg_kit.decisions.ending import SERVER_ERRORS
from serverless_pg_kit_powertools.answers import check_options, route_status, tell
from serverless_pg_kit_powertools.chains import Options, answer_of, async_answer_of, handed_on, lent

if TYPE_CHECKING:
    from aws_lambda_powertools.event_handler.api_gateway import ApiGatewayResolver, Response

    from serverless_pg_kit import AsyncEngine
    from serverless_pg_kit_powertools.chains import NextMiddleware


class PostgresMiddleware(BaseMiddlewareHandler[Any]):
    """Run what is routed as one request of `engine` (``None``: `default_engine`), for all routes (``app.use([...])``)
    or for one (``middlewares=[...]``).

    ``app.context[key]`` is the request, a `Scope`: its `connection` acquires at the first touch, as does
    ``engine.connection``. Nothing is acquired for a route that touches neither, nor for the 404 route. A response
    commits, one with a status in `rollback_on` rolls back, and so does an exception; but a ``ServiceError`` is an
    answer, whose status decides. Where one middleware is inside another, on the same engine, there is one request.

    `deadline` is in seconds; ``None`` takes the time that the Lambda context has left, less the setting
    ``deadline_margin``; ``math.inf`` opts out. `isolation_level`, `read_only` and `conninfo` are those of
    `Engine.request`, and so are the errors, which the resolver's exception handlers get; `conninfo` may also be a
    callable that gets the resolver and returns it. Raises ``TypeError`` for an `AsyncEngine`.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        key: str = "db",
        rollback_on: Container[int] = SERVER_ERRORS,
        deadline: float | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        conninfo: Conninfo | Callable[[ApiGatewayResolver], Conninfo | None] | None = None,
    ) -> None:
        check_options(engine, Engine, rollback_on, "AsyncPostgresMiddleware takes an AsyncEngine, for resolve_async")
        self._options = Options(engine, key, rollback_on, deadline, isolation_level, read_only, conninfo)

    def handler(self, app: ApiGatewayResolver, next_middleware: NextMiddleware) -> Response[Any]:
        """Call the rest of the chain as one request, and return its response."""
        options = self._options
        engine = default_engine() if options.engine is None else options.engine
        with options.scope(app, engine) as scope:
            with lent(app.context, options.key, scope):
                answer = answer_of(app, next_middleware)
            tell(scope, route_status(answer), options.rollback_on)
        response: Response[Any] = handed_on(answer)
        return response


class AsyncPostgresMiddleware(functools.partial[Any]):
    """The same for ``resolve_async`` (Powertools 3.29 and later), with an `AsyncEngine` (``None``:
    `default_async_engine`): ``await app.context[key].connection``.

    The arguments are those of `PostgresMiddleware`. Raises ``TypeError`` for an `Engine`.
    """

    # Python before 3.12 takes no object for a coroutine function, unless it is a partial of one.
    __name__ = "AsyncPostgresMiddleware"

    def __new__(
        cls,
        engine: AsyncEngine | None = None,
        *,
        key: str = "db",
        rollback_on: Container[int] = SERVER_ERRORS,
        deadline: float | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        conninfo: Conninfo | Callable[[ApiGatewayResolver], Conninfo | None] | None = None,
    ) -> AsyncPostgresMiddleware:
        """Make the middleware."""
        from serverless_pg_kit import AsyncEngine

        check_options(engine, AsyncEngine, rollback_on, "PostgresMiddleware takes an Engine")
        options = Options(engine, key, rollback_on, deadline, isolation_level, read_only, conninfo)
        return super().__new__(cls, run_async, options)


async def run_async(options: Options, app: ApiGatewayResolver, next_middleware: NextMiddleware) -> Any:
    """Await the rest of the chain as one request, and return its response."""
    engine = default_async_engine() if options.engine is None else options.engine
    async with options.scope(app, engine) as scope:
        with lent(app.context, options.key, scope):
            answer = await async_answer_of(app, next_middleware)
        tell(scope, route_status(answer), options.rollback_on)
    return handed_on(answer)
