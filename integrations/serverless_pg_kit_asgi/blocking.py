"""What blocks runs in threads, so that the event loop goes on."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from serverless_pg_kit import Scope
from serverless_pg_kit.aio.waiting import uninterrupted

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Return what ``work()`` returns, called in a thread and in the context of the caller.

    It counts for no limit on threads. Were it to wait for one of those that run ``def`` endpoints, it could wait for an
    endpoint that waits for the very connection which this is about to give back.
    """
    return await run_sync(work, limiter=CapacityLimiter(1))


class InThreads:
    """A request on an `Engine` in an ``async with`` block; its end does not block the event loop.

    The block says by `Scope.fail` what an exception means.
    """

    def __init__(self, work: Scope) -> None:
        self._work = work

    async def __aenter__(self) -> Scope:
        return self._work.__enter__()

    async def end(self) -> None:
        """Do what `Scope.end` does, uninterrupted as the end of an `AsyncEngine`'s request."""
        self._work.suspend()  # in this context: the thread has one of its own
        if self._work.is_open:
            await uninterrupted(in_thread(self._work.end))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()
