"""An `AsyncEngine` in the clothes of an `Engine`, so that one suite of tests runs over both shells.

Whatever would have to be awaited is run on an event loop of the calling thread, to its end. So every call is an
invocation of its own in the eyes of the engine, as in a function that calls ``asyncio.run`` each time, except that the
loop lives on.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from psycopg import AsyncConnection

from serverless_pg_kit import AsyncEngine, with_db

_thread = threading.local()
_clothes: weakref.WeakValueDictionary[int, Blocking] = weakref.WeakValueDictionary()  # by the id of what wears them

SETTERS = ("autocommit", "isolation_level", "read_only", "deferrable")


def blocking_engine(**names: Any) -> Any:
    """Make an `AsyncEngine` and return it as something that looks like an `Engine`."""
    if names.get("configure") is not None:
        names["configure"] = functools.partial(configured, names["configure"])
    return clothed(AsyncEngine(**names))


async def anext(items: Any) -> Any:
    """Return the next of `items`."""
    return await items.__anext__()


async def configured(configure: Callable[[Any], object], conn: AsyncConnection[Any]) -> None:
    """Call the blocking `configure` with `conn`."""
    await beside(configure, clothed(conn))


async def beside(function: Callable[..., Any], *args: Any) -> Any:
    """Return what the blocking `function` returns, called in a thread whose waits are done by this one's loop."""
    loop = asyncio.get_running_loop()

    def call() -> Any:
        _thread.lender = loop
        try:
            return function(*args)
        finally:
            del _thread.lender

    return await asyncio.to_thread(call)


def working(engine: Any, work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the blocking `work` in the form in which ``engine.run_transaction`` takes it."""
    if not isinstance(engine, Blocking):
        return work

    async def awaited(conn: AsyncConnection[Any]) -> Any:
        return await beside(work, clothed(conn))

    return awaited


def decorated(engine: Any, handler: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return `handler` decorated with ``with_db(engine)``, in the form that the engine needs, as one that blocks."""
    decorate: Callable[[Callable[..., Any]], Callable[..., Any]] = with_db(naked(engine), **options)
    if not isinstance(engine, Blocking):
        return decorate(handler)

    @functools.wraps(handler)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        clothes = {name: clothed(value) for name, value in kwargs.items()}
        return await beside(functools.partial(handler, *args, **clothes))

    awaitable = decorate(awaited)
    return lambda event, context: run(awaitable(event, context))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` to its end; what it changes in context variables holds for the caller."""
    lender = getattr(_thread, "lender", None)
    if lender is not None:
        return asyncio.run_coroutine_threadsafe(work, lender).result()
    if not hasattr(_thread, "loop"):
        _thread.loop = asyncio.new_event_loop()
        weakref.finalize(threading.current_thread(), _thread.loop.close)
    contexts: list[contextvars.Context] = []

    async def remembered() -> Any:
        try:
            return await work
        finally:
            contexts.append(contextvars.copy_context())

    try:
        return _thread.loop.run_until_complete(remembered())
    finally:
        adopt(contexts[0])


def adopt(context: contextvars.Context) -> None:
    """Set all variables of `context` in the current one."""
    own = contextvars.copy_context()
    for variable, value in context.items():
        if variable not in own or own[variable] is not value:
            variable.set(value)


def clothed(value: Any) -> Any:
    """Return `value` in a form that blocks, if it is something that would have to be awaited somewhere."""
    if inspect.iscoroutine(value):
        return clothed(run(value))
    if isinstance(value, Blocking) or not is_async(value):
        return value
    clothes = _clothes.get(id(value))
    if clothes is None:
        _clothes[id(value)] = clothes = Blocking(value)
    return clothes


def is_async(value: Any) -> bool:
    """Tell whether `value` is an object of the async shell or of psycopg's async side."""
    kind = type(value)
    theirs = kind.__module__.startswith("psycopg") and "Async" in kind.__name__
    return theirs or isinstance(value, AsyncEngine) or hasattr(kind, "__aenter__") or hasattr(kind, "__aiter__")


def naked(value: Any) -> Any:
    """Return what `value` wears clothes over, or `value`."""
    return value._naked if isinstance(value, Blocking) else value


class Blocking:
    """An object of the async side, each of whose methods blocks."""

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "_naked", value)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._naked, name)
        if not inspect.ismethod(value):
            return clothed(value)

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            return clothed(value(*map(naked, args), **{name: naked(each) for name, each in kwargs.items()}))

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SETTERS and isinstance(self._naked, AsyncConnection):
            run(getattr(self._naked, f"set_{name}")(value))
        else:
            setattr(self._naked, name, naked(value))

    def __delattr__(self, name: str) -> None:
        delattr(self._naked, name)

    def __enter__(self) -> Any:
        return clothed(run(self._naked.__aenter__()))

    def __exit__(self, *error: Any) -> Any:
        return run(self._naked.__aexit__(*error))

    def __iter__(self) -> Any:
        return clothed(self._naked.__aiter__())

    def __next__(self) -> Any:
        try:
            return run(anext(self._naked))
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> Any:
        """Close it, under the name that this has on the async side."""
        close = getattr(self._naked, "aclose", None) or self._naked.close
        return clothed(close())

    def __repr__(self) -> str:
        return repr(self._naked)
