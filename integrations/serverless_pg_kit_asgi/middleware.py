"""The middleware: where an HTTP request begins and ends one on an engine."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from psycopg import IsolationLevel
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from serverless_pg_kit import AsyncEngine, Engine, SettingsError
from serverless_pg_kit.aio.scope import Scope as AsyncScope
from serverless_pg_kit.aws_lambda import context_budget
from serverless_pg_kit.conninfo import Conninfo
from serverless_pg_kit.decisions.ending import SERVER_ERRORS, check_statuses
from serverless_pg_kit_asgi.answer import Answer
from serverless_pg_kit_asgi.blocking import InThreads
from serverless_pg_kit_asgi.lifespan import closing, refuse
from serverless_pg_kit_asgi.options import check_deadline, chosen_engine

ASYNC_NAME, BLOCKING_NAME = "db", "sync_db"
"""Where a request is found in ``request.state``, unless the middleware was given another `name`."""


class ServerlessPgMiddleware:
    """Runs each HTTP request of `app` as one request on an engine. Pure ASGI::

        app.add_middleware(ServerlessPgMiddleware, engine=engine)

    `engine` is an `AsyncEngine`, or an `Engine` for endpoints that are no coroutines. Instead of it, single settings by
    name make an `AsyncEngine`; neither of them is `default_async_engine`. Who made an engine closes it.

    A request acquires nothing until its connection is touched: as ``engine.connection``, as
    ``request.state.db.connection``, or by a dependency. `name` replaces ``db`` (``sync_db`` for an `Engine`) there.

    `isolation_level` and `read_only` are those of `AsyncEngine.request`. ``tenant(request)`` returns the conninfo of
    whom a request is for, or ``None``; it is called when the request begins.

    It is rolled back if an exception leaves the application, if the body is not sent to its end, or if the status is
    in `rollback_on`: by default 500 and more. Otherwise it is committed, before the part that completes the body goes
    out, and before the head of an answer that announces its length: a COMMIT that fails is raised, and becomes a 500.

    `deadline` is in seconds for each request; ``None`` takes the remaining time of the Lambda context, if Mangum passes
    one on, ``math.inf`` opts out. `close_at_shutdown` closes the engine at the end of the lifespan, but not in AWS
    Lambda, where adapters end it with each invocation.

    Frameworks make their middleware late. So what is wrong with the arguments is kept, fails the lifespan's start,
    which ends the server, and is raised by each request: `SettingsError` or ``TypeError``.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        /,
        engine: AsyncEngine | Engine | None = None,
        *,
        name: str | None = None,
        deadline: float | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        tenant: Callable[[HTTPConnection], Conninfo | None] | None = None,
        rollback_on: Container[int] = SERVER_ERRORS,
        close_at_shutdown: bool = False,
        **settings: Any,
    ) -> None:
        # Older Starlettes pass it by name. As a name of ours it would hide from type checkers that any setting fits.
        self._app: ASGIApp = settings.pop("app", app)
        self._deadline = deadline
        self._how = {"isolation_level": isolation_level, "read_only": read_only}
        self._tenant = tenant
        self._rollback_on = rollback_on
        self._closes = close_at_shutdown
        self._problem: Exception | None = None
        try:
            check_deadline(deadline)
            check_statuses(rollback_on)
            self._engine = chosen_engine(engine, settings)
        except (SettingsError, TypeError) as problem:
            self._problem = problem
            return
        self._name = name or (BLOCKING_NAME if isinstance(self._engine, Engine) else ASYNC_NAME)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request, or pass on what is none: a lifespan, a websocket."""
        if self._problem is not None:
            await refuse(scope, receive, send, self._problem)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan" and self._closes:
            await self._app(scope, receive, closing(self._engine, send))
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = self._request(scope)
        async with request as work:
            scope.setdefault("state", {})[self._name] = work
            answer = Answer(work, request.end, send, self._rollback_on)
            try:
                await self._app(scope, receive, answer.send)
            finally:
                answer.settle()

    def _request(self, scope: Scope) -> AsyncScope | InThreads:
        """Return the request that answers `scope`; it ends as an ``async with`` block does."""
        engine, seconds = self._engine, self._deadline
        if seconds is None:
            seconds = context_budget((scope.get("aws.context"),), engine)
        how: dict[str, Any] = {**self._how, "deadline": seconds}
        if self._tenant is not None:
            how["conninfo"] = self._tenant(HTTPConnection(scope))
        if isinstance(engine, Engine):
            return InThreads(engine.scope(**how))
        return engine.scope(**how)
