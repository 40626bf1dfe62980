"""What one web request, or one app context, does on an engine."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection

from serverless_pg_kit import CleanReport, Engine


class Work:
    """A transaction that begins at the first touch of `connection` and is over with `end`; after that comes the next.

    `deadline` is in seconds from now, for all of them together; ``None``: there is none. `home` is the ``flask.g`` of
    the web request that it belongs to, once that is known; `handled` the exception that was being handled when an app
    context began it. `is_streaming` says that a body is still to be sent,
    `is_answered` that there was a response, and `is_over` that nothing may begin any more.
    """

    def __init__(self, engine: Engine, deadline: float | None = None) -> None:
        self.engine: Engine = engine
        self.home: object = None
        self.handled: BaseException | None = None
        self.is_streaming: bool = False
        self.is_answered: bool = False
        self.is_over: bool = False
        self._scope = engine.scope(deadline=deadline, join=False)
        self._is_current = False

    @property
    def connection(self) -> Connection[Any]:
        """The connection of the present transaction. Raises what `Engine.request` raises."""
        return self._scope.connection

    @property
    def has_connection(self) -> bool:
        """Whether a connection was acquired and not yet given back."""
        return self._scope.has_connection

    @contextmanager
    def current(self) -> Iterator[None]:
        """Be the engine's current request inside the block, which does not end it."""
        self._is_current = True
        self._scope.resume()
        try:
            yield
        finally:
            self._scope.suspend()
            self._is_current = False

    def respond(self, status: int, rollback_on: Container[int]) -> None:
        """Take account of an answer with `status`: those in `rollback_on` roll back."""
        self.is_answered = True
        if status in rollback_on:
            self._scope.fail()
        self._scope.respond(min(status, 499))  # what rolls back is decided; here 400 and more admit a failure

    def fail(self) -> None:
        """Let the present transaction end with a rollback."""
        self._scope.fail()

    def end(self) -> CleanReport:
        """Commit, or roll back after `fail`, and give the connection back. Raises what the end of a request raises."""
        scope = self._scope
        self._scope = self.engine.scope(deadline=scope.deadline.remaining(), join=False)
        try:
            return scope.end()
        finally:
            if self._is_current:
                self._scope.resume()

    def finish(self) -> None:
        """End it for good. Raises what `end` raises."""
        self.is_over = True
        self.end()

    def abandon(self) -> None:
        """Roll back, and end it for good. Nothing happens after `finish`."""
        self.fail()
        self.finish()
