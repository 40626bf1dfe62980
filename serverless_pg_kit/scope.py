"""A request on an engine: it begins without a connection, acquires one at the first touch, and ends as it should.

`Work` is the request itself; `Scope` and `Request` are the two forms in which users hold it.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from psycopg import Connection, IsolationLevel

from serverless_pg_kit import processes
from serverless_pg_kit.decisions.cleaning import CleanReport
from serverless_pg_kit.decisions.deadline import Deadline

if TYPE_CHECKING:
    from serverless_pg_kit.engine import Engine
    from serverless_pg_kit.slots import Slot


class Work:
    """One request, from its begin to its end, which commits or rolls back, and cleans.

    `deadline` is the moment the request has to be done; `report` is what its end did, ``None`` until then;
    `begun_by_hand` tells those of `Engine.connect`.
    """

    __slots__ = (
        "__weakref__",
        "_engine",
        "_lock",
        "_outer",
        "_process",
        "_slot",
        "_spoiled",
        "_tells_failure",
        "_wants_commit",
        "begun_by_hand",
        "deadline",
        "isolation_level",
        "read_only",
        "report",
    )

    def __init__(
        self,
        engine: Engine,
        deadline: Deadline,
        isolation_level: IsolationLevel | None,
        read_only: bool | None,
    ) -> None:
        self.deadline: Deadline = deadline
        self.isolation_level: IsolationLevel | None = isolation_level
        self.read_only: bool | None = read_only
        self.report: CleanReport | None = None
        self.begun_by_hand: bool = False
        self._engine = engine
        self._lock = threading.Lock()
        self._process = processes.generation
        self._slot: Slot | None = None
        self._outer: Work | None = None
        self._wants_commit = True
        self._spoiled = False
        self._tells_failure = False

    @property
    def connection(self) -> Connection[Any]:
        """The request's connection, inside a transaction; acquired at the first touch.

        Raises what `Engine.request` raises, and ``RuntimeError`` once the request has ended. The engine closes it.
        """
        if self.report is not None:
            raise RuntimeError("this request has ended: its connection may already serve another one")
        with self._lock:  # threads that share the request share its one connection
            if self._slot is None:
                self._slot = self._engine._acquire(self)
            return self._slot.conn

    @property
    def has_connection(self) -> bool:
        """Whether a connection was acquired and not yet given back."""
        return self._slot is not None

    @property
    def is_open(self) -> bool:
        """Whether the request goes on, in the process in which it began."""
        return self.report is None and self._process == processes.generation

    def fail(self) -> None:
        """Let the request end with a rollback, although no exception leaves it."""
        self._wants_commit = False

    def respond(self, status: int) -> None:
        """Take account of the HTTP `status` of the request's answer.

        500 and more roll back. 400 and more admit a failure: a transaction that has failed is then rolled back
        silently instead of raising `TransactionFailed`.
        """
        self._wants_commit = self._wants_commit and status < 500
        self._tells_failure = self._tells_failure or status >= 400

    def forgive(self) -> None:
        """Roll back a transaction that has failed silently: whoever ends the request by hand has seen its error.

        Not if a request that joined this one failed: then more is lost than that error told.
        """
        self._tells_failure = self._tells_failure or not self._spoiled

    def spoil(self) -> None:
        """Let the request end with a rollback, and with `TransactionFailed` if its own code believes in success.

        For a request that joined this one and failed: what it did must not be committed by halves.
        """
        self._spoiled = True

    def _begin(self) -> None:
        current = self._engine._current
        self._outer = current.get()
        current.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._wants_commit = False
        # Stored and not reset by token: the block may end in another context than it began in.
        current = self._engine._current
        if current.get() is self:
            current.set(self._outer)
        self._engine._end(self)

    def __del__(self) -> None:
        # A request begun by `Engine.connect` in a thread or task that is gone: nobody will end it any more.
        if self._slot is not None and self._process == processes.generation:
            self._engine._forgotten.append(self._slot)
        elif self._slot is not None:
            self._engine._slots.abandon(self._slot)


class Scope(Work):
    """A request in a ``with`` block that gives the request itself. Made by `Engine.scope`; adapters stand on it.

    It acquires nothing until its `connection` is touched.
    """

    __slots__ = ()

    def __enter__(self) -> Scope:
        self._begin()
        return self


class Request(Work):
    """A request in a ``with`` block that gives its connection, acquired at once. Made by `Engine.request`."""

    __slots__ = ()

    def __enter__(self) -> Connection[Any]:
        self._begin()
        try:
            self._slot = slot = self._engine._acquire(self)
            return slot.conn
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise


class Joined(Work):
    """A request inside another one on the same engine: it uses that one's connection, which also ends it."""

    __slots__ = ("_joined",)

    def __init__(self, outer: Work) -> None:
        super().__init__(outer._engine, outer.deadline, outer.isolation_level, outer.read_only)
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
            self._joined.spoil()


class JoinedScope(Joined, Scope):
    """A joined `Scope`."""

    __slots__ = ()


class JoinedRequest(Joined, Request):
    """A joined `Request`."""

    __slots__ = ()

    def __enter__(self) -> Connection[Any]:
        return self._joined.connection
