"""The AWS Lambda decorator."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from psycopg import IsolationLevel

from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.conninfo import Conninfo
from serverless_pg_kit.decisions.deadline import request_budget
from serverless_pg_kit.engine import Engine
from serverless_pg_kit.handlers import Injection, finished_status, is_async, plan_injection

if TYPE_CHECKING:
    from serverless_pg_kit.aio.engine import AsyncEngine

R = TypeVar("R")

REMAINING_TIME = "get_remaining_time_in_millis"
"""By this method a Lambda context is known."""
E = TypeVar("E", bound=EngineBase)

_defaults: dict[type[EngineBase], Any] = {}
_default_lock = threading.Lock()


def default_engine() -> Engine:
    """Return the engine that bare ``@with_db`` uses: one for the process, made from the environment at first use.

    Raises `SettingsError` if the environment holds a bad setting.
    """
    return _default(Engine)


def default_async_engine() -> AsyncEngine:
    """Return the engine that bare ``@with_db`` uses for async handlers, made like `default_engine`.

    Raises `SettingsError` if the environment holds a bad setting.
    """
    from serverless_pg_kit.aio.engine import AsyncEngine

    return _default(AsyncEngine)


def _default(kind: type[E]) -> E:
    with _default_lock:
        if kind not in _defaults:
            _defaults[kind] = kind()
        engine: E = _defaults[kind]
        return engine


@overload
def with_db(handler: Callable[..., R], /) -> Callable[..., R]: ...
@overload
def with_db(
    engine: Engine | AsyncEngine | None = None,
    /,
    *,
    inject: str = "conn",
    deadline: float | None = None,
    isolation_level: IsolationLevel | None = None,
    read_only: bool | None = None,
    join: bool = True,
    conninfo: Conninfo | Callable[..., Conninfo | None] | None = None,
) -> Callable[[Callable[..., R]], Callable[..., R]]: ...
def with_db(
    target: Any = None,
    /,
    *,
    inject: str = "conn",
    deadline: float | None = None,
    isolation_level: IsolationLevel | None = None,
    read_only: bool | None = None,
    join: bool = True,
    conninfo: Conninfo | Callable[..., Conninfo | None] | None = None,
) -> Any:
    """Run a handler as one request: it commits on success, rolls back on failure, and cleans up.

    Use it bare (``@with_db``: one default engine for the process), or with an engine and options
    (``@with_db(engine)``). It works on functions, methods, partials and callable objects. The connection is injected
    as the keyword argument `inject`, if the handler has such a parameter and the caller did not pass it. Without it
    nothing is acquired until ``engine.connection`` is touched. ``async def`` handlers need an `AsyncEngine` (bare: a
    default one) and stay what has to be awaited; others need an `Engine`, also under a running event loop, which they
    block.

    A dictionary with a ``statusCode`` of 500 or more rolls back. `deadline` is in seconds; ``None`` takes the remaining
    time of the context, the first argument with ``get_remaining_time_in_millis()``, less the setting
    ``deadline_margin``; ``math.inf`` opts out. `isolation_level`, `read_only`, `join` and `conninfo` are those of
    `Engine.request`: with ``join=False`` a function that is called for each record of a batch commits on its own;
    `conninfo` may also be a callable that gets the handler's arguments and returns it.

    The decorated handler raises what `Engine.request` raises. Raises ``TypeError`` when decorating what is no handler.
    """
    options = {
        "deadline": deadline,
        "isolation_level": isolation_level,
        "read_only": read_only,
        "join": join,
        "conninfo": conninfo,
    }
    if target is None or isinstance(target, EngineBase):
        return functools.partial(_decorate, engine=target, inject=inject, options=options)
    return _decorate(target, None, inject, options)


def _decorate(
    handler: Callable[..., Any], engine: EngineBase | None, inject: str, options: Mapping[str, Any]
) -> Callable[..., Any]:
    plan = plan_injection(handler, inject)
    if is_async(handler):
        if isinstance(engine, Engine):
            raise TypeError(f"{handler!r} is async: it needs an AsyncEngine, whose connections do not block")
        return run_async(handler, engine, plan, options)
    if engine is not None and not isinstance(engine, Engine):
        raise TypeError(f"{handler!r} is no async function: it needs an Engine, whose connections block")
    return run_blocking(handler, engine, plan, options)


def run_blocking(
    handler: Callable[..., Any], engine: Engine | None, plan: Injection, options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Return `handler` as one request on `engine`."""

    @functools.wraps(handler)
    def run(*args: Any, **kwargs: Any) -> Any:
        target = default_engine() if engine is None else engine
        with target.scope(**for_call(options, args, kwargs, target)) as scope:
            if plan.is_wanted(args, kwargs):
                kwargs[plan.name] = scope.connection
            result = handler(*args, **kwargs)
            status = finished_status(result)
            if status >= 400:  # others decide nothing
                scope.respond(status)
            return result

    return run


def run_async(
    handler: Callable[..., Any], engine: Any, plan: Injection, options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Return the async `handler` as one request on the `AsyncEngine` `engine`."""

    @functools.wraps(handler)
    async def run(*args: Any, **kwargs: Any) -> Any:
        target = default_async_engine() if engine is None else engine
        async with target.scope(**for_call(options, args, kwargs, target)) as scope:
            if plan.is_wanted(args, kwargs):
                kwargs[plan.name] = await scope.connection
            result = await handler(*args, **kwargs)
            status = finished_status(result)
            if status >= 400:  # others decide nothing
                scope.respond(status)
            return result

    return run


def for_call(
    options: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], engine: EngineBase
) -> dict[str, Any]:
    """Return `options` for a call with these arguments: the context's remaining time is the deadline, unless one is
    set, and a callable `conninfo` says whose it is."""
    own = dict(options)
    if own["deadline"] is None:
        own["deadline"] = context_budget((*args, *kwargs.values()), engine)
    if callable(own["conninfo"]):
        own["conninfo"] = own["conninfo"](*args, **kwargs)
    return own


def context_budget(arguments: tuple[Any, ...], engine: EngineBase) -> float | None:
    """Return the seconds a request may take by the Lambda context among `arguments`; ``None`` if that is unknown."""
    for argument in arguments:
        if type(argument) is dict:  # the event
            continue
        remaining: Any = getattr(argument, REMAINING_TIME, None)
        if remaining is None:  # the context of a durable function holds Lambda's
            remaining = getattr(getattr(argument, "lambda_context", None), REMAINING_TIME, None)
        milliseconds = remaining() if callable(remaining) else None
        if isinstance(milliseconds, (int, float)):
            return request_budget(milliseconds, engine.settings.deadline_margin)
    return None
