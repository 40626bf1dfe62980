# Written by .ci/make_sync.py from aio/scope.py: edit that, and run it.
"""A request on an engine: it begins without a connection, acquires one at the first touch, and ends as it should.

`Work` is the request itself; `Scope` and `Request` are the two forms in which users hold it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from psycopg import Connection

from serverless_pg_kit.decisions.cleaning import UNTOUCHED, CleanReport
from serverless_pg_kit.scope_base import WorkBase
from serverless_pg_kit.waiting import Lock


class Work(WorkBase):
    """A request that waits in the way of its engine."""

    __slots__ = ()

    @property
    def connection(self) -> Connection[Any]:
        """The request's connection, inside a transaction. Raises ``RuntimeError`` outside the block. The engine closes
        it."""
        slot = self._slot
        if slot is None:
            raise self._no_connection()
        conn: Connection[Any] = slot.conn
        return conn

    def end(self) -> CleanReport:
        """End the request where no ``with`` block can: commit, or roll back after `fail`; then clean. Idempotent.

        A `Scope` that was never entered is nobody's current request: its holder passes its `connection` on. Raises
        what the end of `Engine.request` raises.
        """
        self.__exit__(None, None, None)
        return self.report or UNTOUCHED

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error)
        current = self._engine._current
        if current.get() is self:  # stored and not reset by token: the block may end in another context
            current.set(self._outer)
        self._engine._end(self)


class Scope(Work):
    """A request in a ``with`` block that gives the request itself. Made by `Engine.scope`; adapters stand on it.

    It acquires nothing until its `connection` is touched. Entered again after its end it raises ``RuntimeError``.
    """

    __slots__ = ()

    _make_lock = Lock

    @property
    def connection(self) -> Connection[Any]:
        """The request's connection, inside a transaction; acquired at the first touch.

        Raises what `Engine.request` raises, and ``RuntimeError`` once the request has ended. The engine closes it.
        """
        with self._lock:  # threads that share the request share its one connection
            if self.report is not None:
                raise self._no_connection()
            slot = self._slot
            if slot is None:
                self._slot = slot = self._engine._acquire(self)
                if self.report is not None:
                    raise self._ended_meanwhile()
            conn: Connection[Any] = slot.conn
            return conn

    def __enter__(self) -> Scope:
        if self.report is not None:
            raise self._entered_before()
        self._begin()
        return self


class Request(Work):
    """A request in a ``with`` block that gives its connection, acquired at once. Made by `Engine.request`.

    Entered a second time it raises ``RuntimeError``.
    """

    __slots__ = ()

    def __enter__(self) -> Connection[Any]:
        if self._slot is not None or self.report is not None:
            raise self._entered_before()
        current = self._engine._current
        self._outer = current.get()
        current.set(self)
        try:
            self._slot = slot = self._engine._acquire(self)
            if self.report is not None:
                raise self._ended_meanwhile()
            conn: Connection[Any] = slot.conn
            return conn
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise


class Joined(Work):
    """A request inside another one on the same engine: it uses that one's connection, which also ends it."""

    __slots__ = ("_joined",)

    def __init__(self, outer: Work) -> None:
        super().__init__(outer._engine, outer.until, outer.isolation_level, outer.read_only, outer._tenant)
        self._joined = outer

    @property
    def connection(self) -> Connection[Any]:
        """The connection of the request that was joined."""
        return self._joined.connection

    @property
    def has_connection(self) -> bool:
        """Whether the request that was joined has acquired a connection."""
        return self._joined.has_connection

    def _begin(self) -> None:
        """Leave the request that was joined the current one."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._wants_commit:
            self._joined.spoil(error)


class JoinedScope(Joined, Scope):
    """A joined `Scope`."""

    __slots__ = ()


class JoinedRequest(Joined, Request):
    """A joined `Request`."""

    __slots__ = ()

    def __enter__(self) -> Connection[Any]:
        return self._joined.connection
