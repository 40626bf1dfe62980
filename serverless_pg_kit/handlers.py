"""What kind of handler is decorated, what it takes, and what its result says."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Injection(NamedTuple):
    """Whether a handler `takes` the connection as its parameter `name`, and as which of its positional arguments a call
    may pass it: infinity if by name alone."""

    name: str
    takes: bool
    position: float

    def is_wanted(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether a call is to be given the connection: not if it passes one itself, as tests of a handler may."""
        return self.takes and self.name not in kwargs and len(args) <= self.position


def plan_injection(handler: Callable[..., Any], name: str) -> Injection:
    """Return how `handler` takes its connection. Raises ``TypeError`` if it cannot be decorated."""
    signature = check_handler(handler, name)
    takes = accepts(handler, signature, name)
    is_positional = takes and signature.parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY
    return Injection(name, takes, list(signature.parameters).index(name) if is_positional else math.inf)


def is_async(handler: Any) -> bool:
    """Tell whether a call of `handler` has to be awaited."""
    return any(inspect.iscoroutinefunction(code) for code in codes(handler))


def codes(handler: Any) -> tuple[Any, Any]:
    """Return what may be run when `handler` is called: a function, or the ``__call__`` of an object."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler, getattr(handler, "__call__", None)  # noqa: B004 - its kind matters, not its presence


def check_handler(handler: object, inject: str) -> inspect.Signature:
    """Return the signature of `handler`. Raises ``TypeError`` if it cannot be decorated."""
    if isinstance(handler, (staticmethod, classmethod)):
        raise TypeError("put @staticmethod or @classmethod above @with_db")
    if not callable(handler) or isinstance(handler, type):
        kind = "classes" if isinstance(handler, type) else type(handler).__name__
        raise TypeError(f"with_db decorates handlers and takes an Engine, not {kind}")
    if any(inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code) for code in codes(handler)):
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


def finished_status(result: object) -> int:
    """Return the `status_of` a handler's `result`. Raises ``TypeError`` for one that is not finished."""
    if type(result) is not dict:
        refuse_unfinished(result)
    return status_of(result)


def status_of(result: object) -> int:
    """Return the ``statusCode`` of a proxy-style result, 200 for any other."""
    # The first check is for the sake of the second, which takes long to say no.
    status = result.get("statusCode") if type(result) is dict or isinstance(result, Mapping) else None
    try:
        return 200 if status is None else int(status)
    except (TypeError, ValueError, OverflowError):
        return 200
