"""The decorator of Lambda functions, made with Powertools' factory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from typing import Any, TypeVar, overload

from aws_lambda_powertools.middleware_factory import lambda_handler_decorator
from psycopg import IsolationLevel

from serverless_pg_kit import Engine, default_engine
from serverless_pg_kit.aws_lambda import for_call
from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.conninfo import Conninfo
from serverless_pg_kit.decisions.ending import SERVER_ERRORS
from serverless_pg_kit.handlers import Injection, is_async, plan_injection, refuse_unfinished
from serverless_pg_kit_powertools.answers import check_options, function_status, tell

R = TypeVar("R")

ASYNC = "an async handler needs @with_db(engine), with an AsyncEngine: Powertools' decorators do not await"


@overload
def postgres_middleware(handler: Callable[..., R], /) -> Callable[..., R]: ...
@overload
def postgres_middleware(
    *,
    engine: Engine | None = None,
    inject: str | None = "conn",
    rollback_on: Container[int] = SERVER_ERRORS,
    deadline: float | None = None,
    isolation_level: IsolationLevel | None = None,
    read_only: bool | None = None,
    conninfo: Conninfo | Callable[[Any, Any], Conninfo | None] | None = None,
) -> Callable[[Callable[..., R]], Callable[..., R]]: ...
def postgres_middleware(
    handler: Any = None,
    /,
    *,
    engine: Engine | None = None,
    inject: str | None = "conn",
    rollback_on: Container[int] = SERVER_ERRORS,
    deadline: float | None = None,
    isolation_level: IsolationLevel | None = None,
    read_only: bool | None = None,
    conninfo: Conninfo | Callable[[Any, Any], Conninfo | None] | None = None,
) -> Any:
    """Run a Lambda function as one request of `engine`: success commits, an exception or a status in `rollback_on`
    rolls back.

    Use it bare, with the engine of `default_engine`, or with options, all by name. It goes together with the other
    decorators of Powertools in any order. The connection is passed as the keyword argument `inject`, if the function
    has such a parameter; ``None`` never passes one. Without it nothing is acquired until ``engine.connection`` is
    touched. The status is that of a proxy response, or of an answer to a Bedrock agent.

    `deadline` is in seconds; ``None`` takes the time that the Lambda context has left, less the setting
    ``deadline_margin``; ``math.inf`` opts out. `isolation_level`, `read_only` and `conninfo` are those of
    `Engine.request`, and so are the errors that the function raises; `conninfo` may also be a callable that gets event
    and context and returns it. Raises ``TypeError`` when decorating what it cannot run.
    """
    if isinstance(handler, EngineBase):
        raise TypeError("pass the engine by name: @postgres_middleware(engine=engine)")
    check_options(engine, Engine, rollback_on, ASYNC)
    options: dict[str, Any] = {
        "deadline": deadline,
        "isolation_level": isolation_level,
        "read_only": read_only,
        "conninfo": conninfo,
    }
    if handler is None:
        return functools.partial(postgres_middleware, engine=engine, inject=inject, rollback_on=rollback_on, **options)
    if is_async(handler):
        raise TypeError(f"{handler!r} is async: {ASYNC}")
    plan = None if inject is None else plan_injection(handler, inject)
    return postgres_request(handler, engine=engine, plan=plan, rollback_on=rollback_on, options=options)


@lambda_handler_decorator
def postgres_request(
    handler: Callable[..., Any],
    event: Any,
    context: Any,
    *,
    engine: Engine | None,
    plan: Injection | None,
    rollback_on: Container[int],
    options: dict[str, Any],
    **passed: Any,
) -> Any:
    """Call `handler` as one request; `passed` is what decorators around this one, or a test, pass by name."""
    target = default_engine() if engine is None else engine
    with target.scope(**for_call(options, (event, context), {}, target)) as scope:
        if plan is not None and plan.is_wanted((event, context), passed):
            passed[plan.name] = scope.connection
        result = handler(event, context, **passed)
        refuse_unfinished(result)
        tell(scope, function_status(result), rollback_on)
        return result
