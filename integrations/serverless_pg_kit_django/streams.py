"""Bodies that are still sent when all middleware is through: what they read from ends after them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from asgiref.sync import sync_to_async


class Stream:
    """The parts of `body`. After the last one `end` is called with True, otherwise with False.

    Django closes it with the response, also if the body fails, or the client is gone before its end.
    """

    def __init__(self, body: Iterable[bytes], end: Callable[[bool], None]) -> None:
        self._parts = iter(body)
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._parts)
        except StopIteration:
            self._end(True)
            raise

    def close(self) -> None:
        """End the request of a body that has not come to its end; nothing is left to do otherwise."""
        self._end(False)


class AsyncStream:
    """What `Stream` is, for an asynchronous `body`."""

    def __init__(self, body: Any, end: Callable[[bool], None]) -> None:
        self._parts: AsyncIterator[bytes] = aiter(body)
        self._end = end

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._parts)
        except StopAsyncIteration:
            await sync_to_async(self._end)(True)
            raise

    def close(self) -> None:
        """End the request of a body that has not come to its end; nothing is left to do otherwise."""
        self._end(False)
