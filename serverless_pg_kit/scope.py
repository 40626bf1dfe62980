"""A request on an engine: it begins without a connection, acquires one at the first touch, and ends as it should."""

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


class Scope:
    """One request. Made by `Engine.scope`; a context manager that ends it, commits or rolls back, and cleans.

    What every adapter stands on. `deadline` is the moment the request has to be done; `report` is what its end did,
    ``None`` until then; `begun_by_hand` tells those of `Engine.connect`.
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
        self._outer: Scope | None = None
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

    def __enter__(self) -> Scope:
        self._outer = self._engine._current.get()
        self._engine._current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail()
        # Stored and not reset by token: the block may end in another context than it began in.
        if self._engine._current.get() is self:
            self._engine._current.set(self._outer)
        self._engine._end(self)

    def __del__(self) -> None:
        # A request begun by `Engine.connect` in a thread or task that is gone: nobody will end it any more.
        if self._slot is not None and self._process == processes.generation:
            self._engine._forgotten.append(self._slot)
        elif self._slot is not None:
            self._engine._slots.abandon(self._slot)


class Request:
    """A ``with`` block around a `Scope` that gives its connection, acquired at once."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __enter__(self) -> Connection[Any]:
        scope = self._scope.__enter__()
        try:
            return scope.connection
        except BaseException as error:
            scope.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, trace)


class JoinedScope(Scope):
    """A request inside another one on the same engine: it uses that one's connection, which also ends it."""

    __slots__ = ("_joined",)

    def __init__(self, outer: Scope) -> None:
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

    def __enter__(self) -> Scope:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._wants_commit:
            self._joined.spoil()
