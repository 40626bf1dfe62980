"""The state of a request, and what it decides without waiting: shared by both shells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from psycopg import IsolationLevel

from serverless_pg_kit import processes
from serverless_pg_kit.decisions.cleaning import CleanReport
from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.decisions.role import is_refused_write

if TYPE_CHECKING:
    from serverless_pg_kit.slots import Slot


class WorkBase:
    """One request, from its begin to its end, which commits or rolls back, and cleans.

    `deadline` is the moment the request has to be done; `report` is what its end did, ``None`` until then;
    `committed` tells whether the server has confirmed its COMMIT: somebody who was interrupted may want to know.
    `begun_by_hand` tells those of `Engine.connect`. `transaction` tells whether the engine begins its transaction.
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
        "_wants_commit",
        "begun_by_hand",
        "committed",
        "deadline",
        "isolation_level",
        "read_only",
        "report",
        "transaction",
    )

    _make_lock: ClassVar[Any]

    def __init__(
        self,
        engine: Any,
        deadline: Deadline,
        isolation_level: IsolationLevel | None,
        read_only: bool | None,
        *,
        transaction: bool = True,
    ) -> None:
        self.deadline: Deadline = deadline
        self.isolation_level: IsolationLevel | None = isolation_level
        self.read_only: bool | None = read_only
        self.transaction: bool = transaction
        self.report: CleanReport | None = None
        self.committed: bool = False
        self.begun_by_hand: bool = False
        self._engine = engine
        self._lock = self._make_lock()
        self._process = processes.generation
        self._slot: Slot | None = None
        self._outer: WorkBase | None = None
        self._wants_commit = True
        self._spoiled = False
        self._refused_write = False
        self._tells_failure = False

    @property
    def has_connection(self) -> bool:
        """Whether a connection was acquired and not yet given back."""
        return self._slot is not None

    @property
    def is_open(self) -> bool:
        """Whether the request goes on, in the process in which it began."""
        return self.report is None and self._process == processes.generation

    def fail(self, error: BaseException | None = None) -> None:
        """Let the request end with a rollback, although no exception leaves it; `error` is the one that was caught."""
        self._wants_commit = False
        self._refused_write = self._refused_write or is_refused_write(error)

    def respond(self, status: int, *, rollback: bool | None = None) -> None:
        """Take account of the HTTP `status` of the request's answer.

        500 and more roll back, unless `rollback` says what the status means. 400 and more admit a failure: a
        transaction that has failed is then rolled back silently instead of raising `TransactionFailed`.
        """
        rolls_back = status >= 500 if rollback is None else rollback
        self._wants_commit = self._wants_commit and not rolls_back
        self._tells_failure = self._tells_failure or status >= 400

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
