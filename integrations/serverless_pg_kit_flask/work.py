"""What one web request, or one app context, does on an engine."""

from __future__ import annotations

from collections.abc import Container
from typing import Any
from weakref import ref

from psycopg import Connection

from serverless_pg_kit import CleanReport, Engine, Scope
from serverless_pg_kit.decisions.cleaning import UNTOUCHED


class Work:
    """A transaction that begins at the first touch of `connection` and is over with `end`; after that comes the next.

    `deadline` is in seconds from now, for all of them together; ``None``: there is none.

    Of a web request: `home` is its ``flask.g``, once that is known; `is_answered` says that there was a response,
    `is_streaming` that its body is still to be sent. Of another app context: `handled` is the exception that was being
    handled when it began, `around` the work of the app context around it.
    """

    def __init__(self, engine: Engine, deadline: float | None = None) -> None:
        self.engine: Engine = engine
        self.home: object = None
        self.handled: BaseException | None = None
        self.around: ref[Work] | None = None
        self.is_streaming: bool = False
        self.is_answered: bool = False
        self._scope: Scope | None = engine.scope(deadline=deadline, join=False)
        self._deadline = self._scope.deadline
        self._is_current = False

    @property
    def connection(self) -> Connection[Any]:
        """The connection of the present transaction. Raises what `Engine.request` raises."""
        return self._present().connection

    @property
    def has_connection(self) -> bool:
        """Whether a connection was acquired and not yet given back."""
        return self._scope is not None and self._scope.has_connection

    def resume(self) -> None:
        """Be the engine's current request until `suspend`."""
        self._is_current = True
        if self._scope is not None:
            self._scope.resume()

    def suspend(self) -> None:
        """Be the current request no longer, without an end."""
        self._is_current = False
        if self._scope is not None:
            self._scope.suspend()

    def respond(self, status: int, rollback_on: Container[int]) -> None:
        """Take account of an answer with `status`: those in `rollback_on` roll back."""
        self.is_answered = True
        if self._scope is not None:
            self._scope.respond(status, rollback=status in rollback_on)

    def fail(self) -> None:
        """Let the present transaction end with a rollback."""
        self._present().fail()

    def end(self) -> CleanReport:
        """Commit, or roll back after `fail`, and give the connection back. Raises what the end of a request raises."""
        scope, self._scope = self._scope, None
        return UNTOUCHED if scope is None else scope.end()

    def abandon(self) -> None:
        """Roll back, if anything has begun since the last `end`."""
        if self._scope is not None:
            self._scope.fail()
        self.end()

    def _present(self) -> Scope:
        if self._scope is None:
            self._scope = self.engine.scope(deadline=self._deadline.remaining(), join=False)
            if self._is_current:
                self._scope.resume()
        return self._scope
