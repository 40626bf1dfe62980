"""The AWS Lambda decorator."""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from psycopg import IsolationLevel

from serverless_pg_kit.decisions.deadline import request_budget
from serverless_pg_kit.engine import Engine

R = TypeVar("R")

_default_engine: Engine | None = None
_default_lock = threading.Lock()


def default_engine() -> Engine:
    """Return the engine that bare ``@with_db`` uses: one for the process, made from the environment at first use.

    Raises `SettingsError` if the environment holds a bad setting.
    """
    global _default_engine
    with _default_lock:
        if _default_engine is None:
            _default_engine = Engine()
        return _default_engine


@overload
def with_db(handler: Callable[..., R], /) -> Callable[..., R]: ...
@overload
def with_db(
    engine: Engine | None = None,
    /,
    *,
    inject: str = "conn",
    deadline: float | None = None,
    isolation_level: IsolationLevel | None = None,
    read_only: bool | None = None,
) -> Callable[[Callable[..., R]], Callable[..., R]]: ...
def with_db(
    target: Any = None,
    /,
    *,
    inject: str = "conn",
    deadline: float | None = None,
    isolation_level: IsolationLevel | None = None,
    read_only: bool | None = None,
) -> Any:
    """Run a handler as one request: it commits on success, rolls back on failure, and cleans up.

    Use it bare (``@with_db``: one default engine for the process), or with an engine and options
    (``@with_db(engine)``). It works on functions, methods, partials and callable objects. The connection is injected
    as the keyword argument `inject`, if the handler has such a parameter and the caller did not pass it. Without it
    nothing is acquired until ``engine.connection`` is touched.

    A dictionary with a ``statusCode`` of 500 or more rolls back. `deadline` is in seconds; ``None`` takes the remaining
    time of the context, the first argument with ``get_remaining_time_in_millis()``, less the setting
    ``deadline_margin``; ``math.inf`` opts out. `isolation_level` and `read_only` are those of `Engine.request`.

    The decorated handler raises what `Engine.request` raises. Raises ``TypeError`` when decorating what is no handler.
    """
    if target is None or isinstance(target, Engine):
        return functools.partial(
            _decorate,
            engine=target,
            inject=inject,
            deadline=deadline,
            isolation_level=isolation_level,
            read_only=read_only,
        )
    return _decorate(target, None, inject, deadline, isolation_level, read_only)


def _decorate(
    handler: Callable[..., R],
    engine: Engine | None,
    inject: str,
    deadline: float | None,
    isolation_level: IsolationLevel | None,
    read_only: bool | None,
) -> Callable[..., R]:
    signature = check_handler(handler, inject)
    injects = accepts(handler, signature, inject)

    @functools.wraps(handler)
    def run(*args: Any, **kwargs: Any) -> R:
        target = default_engine() if engine is None else engine
        seconds = context_budget((*args, *kwargs.values()), target) if deadline is None else deadline
        with target.scope(deadline=seconds, isolation_level=isolation_level, read_only=read_only) as scope:
            if injects and not is_given(signature, inject, args, kwargs):
                kwargs[inject] = scope.connection
            result = handler(*args, **kwargs)
            refuse_unfinished(result)
            scope.respond(status_of(result))
            return result

    return run


def check_handler(handler: object, inject: str) -> inspect.Signature:
    """Return the signature of `handler`. Raises ``TypeError`` if it cannot be decorated."""
    if isinstance(handler, (staticmethod, classmethod)):
        raise TypeError("put @staticmethod or @classmethod above @with_db")
    if not callable(handler) or isinstance(handler, type):
        kind = "classes" if isinstance(handler, type) else type(handler).__name__
        raise TypeError(f"with_db decorates handlers and takes an Engine, not {kind}")
    function: Any = handler
    while isinstance(function, functools.partial):
        function = function.func
    for code in (function, getattr(function, "__call__", None)):  # noqa: B004 - its kind matters, not its presence
        if inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code):
            raise TypeError(f"{handler!r} is async: with_db runs plain handlers, with a connection that blocks")
        if inspect.isgeneratorfunction(code):
            raise TypeError(f"{handler!r} is a generator: it would run after its request has ended")
    signature = inspect.signature(handler)
    parameter = signature.parameters.get(inject)
    if parameter is not None and parameter.kind is parameter.POSITIONAL_ONLY:
        raise TypeError(f"{handler!r}: the parameter {inject!r} is positional-only and cannot be injected by name")
    return signature


def accepts(handler: Callable[..., object], signature: inspect.Signature, name: str) -> bool:
    """Tell whether `handler` has a parameter `name` of its own, not bound yet, that a keyword argument reaches.

    A wrapper may show the signature of what it wraps and yet take less.
    """
    if isinstance(handler, functools.partial) and name in handler.keywords:
        return False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    outermost = inspect.signature(handler, follow_wrapped=False).parameters
    reaches = name in outermost or any(each.kind is each.VAR_KEYWORD for each in outermost.values())
    return reaches and name in signature.parameters and signature.parameters[name].kind in named


def refuse_unfinished(result: object) -> None:
    """Raise ``TypeError`` for a result that would only begin to work when the request has ended."""
    if isinstance(result, (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)):
        if isinstance(result, (types.CoroutineType, types.GeneratorType)):
            result.close()
        raise TypeError(f"the handler returned a {type(result).__name__}: it would run after its request has ended")


def is_given(signature: inspect.Signature, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call passes the parameter `name` itself, as tests of a handler may do."""
    position = list(signature.parameters).index(name)
    kind = signature.parameters[name].kind
    return name in kwargs or (len(args) > position and kind is not inspect.Parameter.KEYWORD_ONLY)


def context_budget(arguments: tuple[Any, ...], engine: Engine) -> float | None:
    """Return the seconds a request may take by the Lambda context among `arguments`; ``None`` if that is unknown."""
    for argument in arguments:
        remaining: Any = getattr(argument, "get_remaining_time_in_millis", None)
        milliseconds = remaining() if callable(remaining) else None
        if isinstance(milliseconds, (int, float)):
            return request_budget(milliseconds, engine.settings.deadline_margin)
    return None


def status_of(result: object) -> int:
    """Return the ``statusCode`` of a proxy-style result, 200 for any other."""
    status = result.get("statusCode") if isinstance(result, Mapping) else None
    try:
        return 200 if status is None else int(status)
    except (TypeError, ValueError, OverflowError):
        return 200
