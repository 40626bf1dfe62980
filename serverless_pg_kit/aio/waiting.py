"""What the async shell waits with: the counterparts of `serverless_pg_kit.waiting`, name by name.

Nothing here belongs to one event loop for longer than a call lasts, and no task outlives the call that made it.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import select
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from inspect import isawaitable, iscoroutinefunction
from typing import Any, TypeVar

from psycopg import OperationalError

from serverless_pg_kit.clock import Clock
from serverless_pg_kit.waiting import LONGEST, Steps

T = TypeVar("T")

Lock = asyncio.Lock

FAILURES = (Exception, asyncio.CancelledError)
"""What the end of a request may fail with and still has to be told the outcome of. It is cancelled only if it lasts
too long after its caller was cancelled: see `uninterrupted`."""

CANCELLED_SECONDS = 5.0
"""Longest time that the end of a request may take from when its task is cancelled."""


async def drive(steps: Steps[T]) -> T:
    """Run `steps` to their end and return their result. Raises what they raise; closes them if it is cancelled."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(await is_ready(*wanted))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


async def is_ready(descriptor: int, events: int, seconds: float) -> bool:
    """Wait until one of `events` (of ``select.poll``) happens on `descriptor`, or `seconds` have passed; tell which.

    Raises ``psycopg.OperationalError`` if `descriptor` is closed.
    """
    loop = asyncio.get_running_loop()
    happened: asyncio.Future[bool] = loop.create_future()
    timer = loop.call_later(max(0.0, seconds), settle, happened, False) if seconds <= LONGEST else None
    try:
        if events & select.POLLIN:
            loop.add_reader(descriptor, settle, happened, True)
        if events & select.POLLOUT:
            loop.add_writer(descriptor, settle, happened, True)
        return await happened
    except OSError as error:
        raise OperationalError("the connection was closed while it was waited for") from error
    finally:
        if timer is not None:
            timer.cancel()
        if not loop.is_closed():  # if it is, this is being collected
            unwatch(loop, descriptor, events)


def unwatch(loop: asyncio.AbstractEventLoop, descriptor: int, events: int) -> None:
    """Let `loop` wait for none of `events` on `descriptor` any more."""
    if events & select.POLLIN:
        loop.remove_reader(descriptor)
    if events & select.POLLOUT:
        loop.remove_writer(descriptor)


def settle(future: asyncio.Future[T], value: T) -> None:
    """Give `future` its `value`, unless it has one."""
    if not future.done():
        future.set_result(value)


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns, and let it come to its end even if the caller is cancelled meanwhile, once or again.

    The cancellation is passed on then, unless `work` itself failed: its error tells more. Used for the end of a
    request: a COMMIT that is not waited for is an unknown one. A caller who was cancelled is not held for longer than
    `CANCELLED_SECONDS`: then `work` is cancelled, too.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    # Whoever cancels all tasks, as asyncio.run() does in the end, cancels the caller, and that waits for this one.
    asyncio.tasks._unregister_task(task)
    cancellation: asyncio.CancelledError | None = None
    until = math.inf
    while not task.done():
        try:
            await asyncio.wait([task], timeout=None if until == math.inf else max(0.0, until - loop.time()))
        except asyncio.CancelledError as error:
            cancellation, until = error, min(until, loop.time() + CANCELLED_SECONDS)
        if loop.time() >= until:
            task.cancel()
    if cancellation is not None and (task.cancelled() or task.exception() is None):
        raise cancellation
    return task.result()


def is_loop_running() -> bool:
    """Tell whether something can be waited for: not if a task is collected whose loop is closed."""
    return asyncio._get_running_loop() is not None


async def elsewhere(seconds: float, function: Callable[..., T], *args: Any) -> T | None:
    """Return what ``function(*args)`` returns, called in a thread of its own: it may block, as name resolution does.

    ``None`` if that takes longer than `seconds`. A caller that gives up or is cancelled leaves the thread to itself. It
    is none of the loop's, whose end would wait for it.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Callable[[], T | None]] = loop.create_future()

    def call() -> None:
        outcome = outcome_of(function, *args)
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, answer, outcome)

    threading.Thread(target=call, daemon=True, name="serverless_pg_kit").start()
    timer = loop.call_later(seconds, settle, answer, lambda: None) if seconds <= LONGEST else None
    try:
        return (await answer)()
    finally:
        if timer is not None:
            timer.cancel()


def outcome_of(function: Callable[..., T], *args: Any) -> Callable[[], T]:
    """Call ``function(*args)``; return a function that returns its result, or raises its exception."""
    try:
        result = function(*args)
    except Exception as error:
        failure = error

        def fail() -> T:
            raise failure

        return fail
    return lambda: result


async def pause(clock: Clock, seconds: float) -> None:
    """Sleep for `seconds`, by the `clock` if it has a sleep of its own."""
    if clock.sleep is time.sleep:
        await asyncio.sleep(seconds)
    else:
        clock.sleep(seconds)


class Bell:
    """Wakes one task. It may be rung from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung: asyncio.Future[bool] = self._loop.create_future()

    def ring(self) -> bool:
        """Wake the task that waits, or will wait; tell whether there is one: not if its loop was closed."""
        try:
            self._loop.call_soon_threadsafe(settle, self._rung, True)
        except RuntimeError:
            return False
        return True

    async def wait(self, seconds: float) -> bool:
        """Wait until the bell is rung, at most for `seconds`; tell whether it was."""
        timer = self._loop.call_later(min(seconds, LONGEST), settle, self._rung, False) if seconds < math.inf else None
        try:
            return await self._rung
        finally:
            if timer is not None:
                timer.cancel()


async def completed(result: object, name: str = "configure") -> object:
    """Return `result`, or what comes of it if it is awaitable. Its `name` matters only where nothing is awaited."""
    return await result if isawaitable(result) else result


async def asked(seconds: float, name: str, function: Callable[[], object]) -> tuple[object] | None:
    """Return what ``function()`` returns, in a tuple; ``None`` if that takes longer than `seconds`.

    A coroutine function is awaited, and cancelled then. Any other may block: it is called in a thread of its own, in
    the caller's context, and left to itself then. Raises what it raises.
    """
    if not iscoroutinefunction(function) and not iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        answer = await elsewhere(seconds, lambda run: (run(function),), contextvars.copy_context().run)
        if answer is None or not isawaitable(answer[0]):
            return answer
        return await bounded(seconds, answer[0])
    return await bounded(seconds, function())


async def bounded(seconds: float, work: Any) -> tuple[object] | None:
    """Return what comes of the awaitable `work`, in a tuple; cancel it and return ``None`` after `seconds`."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=min(seconds, LONGEST))
        return (task.result(),) if task.done() else None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=CANCELLED_SECONDS)
