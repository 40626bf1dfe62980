"""The state of a request, and what it decides without waiting: shared by both shells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus

from serverless_pg_kit import processes
from serverless_pg_kit.decisions.cleaning import UNTOUCHED, CleanReport
from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.decisions.ending import SERVER_ERRORS
from serverless_pg_kit.decisions.role import is_refused_write
from serverless_pg_kit.session import has_prepared

if TYPE_CHECKING:
    from typing import TypeAlias

    from serverless_pg_kit.slots import Slot
    from serverless_pg_kit.target import Tenant

Begins: TypeAlias = 'bool | Literal["ahead"]'
"""Whether a connection is given out inside a transaction: True, or False for an idle one. ``"ahead"``: for one that
looks idle, and whose first statement finds the transaction that psycopg would begin for it."""


class WorkBase:
    """One request, from its begin to its end, which commits or rolls back, and cleans.

    `until` is when the request has to be done, by the engine's monotonic clock; `report` is what its end did, ``None``
    until then; `committed` tells whether the server has confirmed its COMMIT: somebody who was interrupted may want to
    know. `begun_by_hand` tells those of `Engine.connect`, `transaction` whether the engine begins its transaction.
    """

    __slots__ = (
        "__weakref__",
        "_engine",
        "_lock",
        "_outer",
        "_process",
        "_refused_write",
        "_slot",
        "_spoiled",
        "_tells_failure",
        "_tenant",
        "_wants_commit",
        "begun_by_hand",
        "committed",
        "isolation_level",
        "read_only",
        "report",
        "transaction",
        "until",
    )

    _make_lock: ClassVar[type[Any] | None] = None
    """For requests that may be touched by several threads or tasks while they acquire; ``None`` for all others."""

    def __init__(
        self,
        engine: Any,
        until: float,
        isolation_level: IsolationLevel | None,
        read_only: bool | None,
        tenant: Tenant | None = None,
        *,
        transaction: Begins = True,
    ) -> None:
        self.until: float = until
        self.isolation_level: IsolationLevel | None = isolation_level
        self.read_only: bool | None = read_only
        self.transaction: Begins = transaction
        self.report: CleanReport | None = None
        self.committed: bool = False
        self.begun_by_hand: bool = False
        self._engine = engine
        self._tenant = tenant
        make_lock = self._make_lock
        self._lock: Any = None if make_lock is None else make_lock()
        self._process = processes.generation
        self._slot: Slot | None = None
        self._outer: WorkBase | None = None
        self._wants_commit = True
        self._spoiled = False
        self._refused_write = False
        self._tells_failure = False

    @property
    def deadline(self) -> Deadline:
        """The moment at which the request has to be done."""
        return Deadline(self.until, self._engine._clock.monotonic)

    @property
    def has_connection(self) -> bool:
        """Whether a connection was acquired and not yet given back."""
        return self._slot is not None

    @property
    def is_idle(self) -> bool:
        """Whether there is a connection on which nothing is going on, as far as its user has asked for anything."""
        slot = self._slot
        if slot is None:
            return False
        return slot.ahead is not None or slot.conn.pgconn.transaction_status == TransactionStatus.IDLE

    def note_rollback(self) -> None:
        """Take account of a rollback that is about to be done on the connection by whoever ends transactions there.

        psycopg's discards all prepared statements of the session if it has any of its own. The end of the request
        finds that out otherwise, by an error that costs a round trip.
        """
        slot = self._slot
        if slot is not None and not self.is_idle and has_prepared(slot.conn):
            self._engine._forget_prepared(slot)

    def _no_connection(self) -> RuntimeError:
        """Return the error for somebody who touches a request that has no connection and acquires none."""
        if self.report is None:
            return RuntimeError("this request has not begun: its connection is what its `with` block gives")
        return RuntimeError("this request has ended: its connection may already serve another one")

    def _ended_meanwhile(self) -> RuntimeError:
        """Return the error for a request that was ended while it acquired: by a signal handler that closed the engine,
        say. It ends once more, so that its connection is given back."""
        self.report = None
        return RuntimeError("this request was ended, by close() perhaps, while it acquired its connection")

    def _entered_before(self) -> RuntimeError:
        """Return the error for somebody who enters a request that has begun, or ended, before."""
        return RuntimeError("a request is entered once: call engine.request() or engine.scope() for each `with` block")

    @property
    def is_direct(self) -> bool | None:
        """Whether the connection's session is its own: False behind a pooler, ``None`` if there is no connection."""
        return None if self._slot is None else self._slot.direct

    @property
    def is_open(self) -> bool:
        """Whether the request goes on, in the process in which it began."""
        return self.report is None and self._process == processes.generation

    def _is_for(self, tenant: Tenant | None) -> bool:
        """Tell whether the request is for `tenant`, too."""
        own = self._tenant
        return own is tenant or (own is not None and tenant is not None and own.target is tenant.target)

    def fail(self, error: BaseException | None = None) -> None:
        """Let the request end with a rollback, although no exception leaves it; `error` is the one that was caught."""
        self._wants_commit = False
        self._refused_write = self._refused_write or is_refused_write(error)

    def respond(self, status: int, *, rollback: bool | None = None) -> None:
        """Take account of the HTTP `status` of the request's answer.

        500 and more roll back, unless `rollback` says what the status means. 400 and more admit a failure: a
        transaction that has failed is then rolled back silently instead of raising `TransactionFailed`.
        """
        rolls_back = status in SERVER_ERRORS if rollback is None else rollback
        self._wants_commit = self._wants_commit and not rolls_back
        self._tells_failure = self._tells_failure or status >= 400

    def _end_untouched(self) -> None:
        """End a request that has no connection, if it has not ended before."""
        self.report = self.report or UNTOUCHED

    def forgive(self) -> None:
        """Roll back a transaction that has failed silently: whoever ends the request by hand has seen its error.

        Not if a request that joined this one failed: then more is lost than that error told.
        """
        self._tells_failure = self._tells_failure or not self._spoiled

    def spoil(self, error: BaseException | None = None) -> None:
        """Let the request end with a rollback, and with `TransactionFailed` if its own code believes in success.

        For a request that joined this one and failed, by `error`: what it did must not be committed by halves.
        """
        self._spoiled = True
        self._refused_write = self._refused_write or is_refused_write(error)

    def resume(self) -> None:
        """Be the engine's current request from now on, as inside a ``with`` block, until `suspend` or the end.

        For hosts that do not call the whole of a request in one piece: a body is streamed after its view has returned.
        """
        if self._engine._current.get() is not self:
            self._begin()

    def suspend(self) -> None:
        """Be the current request no longer, without ending: its connection stays its own."""
        # Stored and not reset by token: the block may end in another context than it began in.
        current = self._engine._current
        if current.get() is self:
            current.set(self._outer)

    def _begin(self) -> None:
        current = self._engine._current
        self._outer = current.get()
        current.set(self)

    def __del__(self) -> None:
        # A request begun by `Engine.connect` in a thread or task that is gone: nobody will end it any more.
        if self._slot is not None and self._process == processes.generation:
            self._engine._forgotten.append(self._slot)
        elif self._slot is not None:
            self._engine._slots.abandon(self._slot)
