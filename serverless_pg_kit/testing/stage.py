"""Where requests are played that are rolled back: one connection for all, and a savepoint for each."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

from psycopg import Connection, Error, OperationalError, ProgrammingError
from psycopg.pq import TransactionStatus

from serverless_pg_kit.commit import ending_problem
from serverless_pg_kit.decisions.cleaning import CleanReport
from serverless_pg_kit.decisions.ending import Ending
from serverless_pg_kit.engine import Engine
from serverless_pg_kit.errors import AcquireTimeout
from serverless_pg_kit.exchange import Answers
from serverless_pg_kit.scope import Work
from serverless_pg_kit.scope_base import WorkBase
from serverless_pg_kit.slots import Slot

KEPT = CleanReport("kept", "a test rolls it back")
OVER = CleanReport("closed", "the test that it belonged to is over")
CHECK = "SAVEPOINT {0}_check; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO SAVEPOINT {0}_check"
"""Raises what COMMIT would, and leaves the constraints as they were."""

SHARED = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max")
"""What a request may change on the connection object inside a transaction."""


class Stage:
    """Stands in for the beginning and the end of requests on `engine`: they share the connection of `slot`.

    The requests that go on are a stack, each inside the one before it, and so are their savepoints.
    """

    def __init__(self, engine: Engine, slot: Slot) -> None:
        self._engine = engine
        self._slot = slot
        self._conn = slot.conn
        self._requests: list[Work] = []
        self._turn = threading.Condition()
        self._must(f"SAVEPOINT {self._name}")
        vars(self._conn).update(commit=self.commit, rollback=self.rollback)

    @property
    def _name(self) -> str:
        """The savepoint of the innermost request, or without one that of the test."""
        return f"serverless_pg_kit_{len(self._requests)}"

    def acquire(self, work: Work) -> Slot:
        """Begin `work` when it is its turn; stands in for the engine's own."""
        seconds = min(self._engine.settings.max_wait, work.deadline.remaining())
        with self._turn:
            if not self._turn.wait_for(lambda: self._is_turn_of(work), min(seconds, threading.TIMEOUT_MAX)):
                raise AcquireTimeout(
                    f"another request went on for {seconds:.2f} s: in rolled_back() they take turns", waited=seconds
                )
            self._requests.append(work)
            try:
                self._must(f"SAVEPOINT {self._name}" + "; SET TRANSACTION READ ONLY" * bool(work.read_only))
            except BaseException:
                self._requests.pop()
                raise
        return copy.copy(self._slot)

    def conclude(self, slot: Slot, work: Work) -> tuple[CleanReport, Exception | None]:
        """End `work`; stands in for the engine's own, which serves requests that began before."""
        if work not in self._requests:
            return type(self._engine)._conclude(self._engine, slot, work)
        try:
            self._end_inside(work)
            return KEPT, self._end(self._engine._ending(slot, work))
        finally:
            with self._turn:
                self._requests.remove(work)
                self._turn.notify_all()

    def commit(self) -> None:
        """Stands in for ``conn.commit()``: keeps what the request has done so far, unless that has failed."""
        self._refuse_inside_blocks("commit")
        error = None if self._has_failed else self._keep(f"RELEASE SAVEPOINT {self._name}; SAVEPOINT {self._name}")
        if error is not None or self._has_failed:
            self._undo()
        if error is not None:
            raise error

    def rollback(self) -> None:
        """Stands in for ``conn.rollback()``: undoes what the request has done since its last commit."""
        self._refuse_inside_blocks("rollback")
        self._undo()

    def strike(self) -> bool:
        """Clear the stage: requests that go on are over. Return whether all can still be rolled back."""
        for name in ("commit", "rollback"):
            vars(self._conn).pop(name, None)
        while self._requests:
            retire(self._requests.pop())
        try:
            return self._say(f"ROLLBACK TO SAVEPOINT {self._name}").failed is None
        except OperationalError:
            return True

    def _is_turn_of(self, work: Work) -> bool:
        return not self._requests or self._requests[-1] in around(work)

    @property
    def _has_failed(self) -> bool:
        conn: Connection[Any] = self._conn
        return conn.pgconn.transaction_status == TransactionStatus.INERROR

    def _end_inside(self, work: Work) -> None:
        """Undo requests inside `work` that nobody ended."""
        while self._requests[-1] is not work:
            self._undo()
            retire(self._requests.pop())

    def _end(self, ending: Ending) -> Exception | None:
        """End the topmost request in this way; return what its caller has to hear."""
        for name in SHARED:
            setattr(self._conn, name, self._slot.baseline.attributes[name])
        if ending in (Ending.DISCARD, Ending.LOST, Ending.UNFINISHED):
            self._conn.close()
            return ending_problem(ending, Answers())
        cursors = "CLOSE ALL; " if len(self._requests) == 1 else ""
        error = self._keep(f"{cursors}RELEASE SAVEPOINT {self._name}") if ending is Ending.COMMIT else None
        if ending is not Ending.COMMIT or error is not None:
            self._must(f"ROLLBACK TO SAVEPOINT {self._name}; {cursors}RELEASE SAVEPOINT {self._name}")
        return error if ending is Ending.COMMIT else ending_problem(ending, Answers())

    def _keep(self, message: str) -> Error | None:
        """Check what COMMIT would check, then say `message`; return the error of either."""
        return self._say(f"{CHECK.format(self._name)}; {message}").error

    def _undo(self) -> None:
        self._must(f"ROLLBACK TO SAVEPOINT {self._name}")

    def _must(self, message: str) -> None:
        """Say `message`. Raises its error: without our savepoints the user's own SQL has ended the transaction."""
        error = self._say(message).error
        if error is not None:
            raise RuntimeError("something committed or rolled back by SQL of its own inside rolled_back()") from error

    def _say(self, message: str) -> Answers:
        if self._conn.closed:  # whoever left something unfinished may still hold its lock
            raise OperationalError("the connection of rolled_back() is gone: a request lost it, or left it unusable")
        answers: Answers = self._slot.line.run(message.encode(), self._engine._deadline(None))
        return answers

    def _refuse_inside_blocks(self, name: str) -> None:
        if self._conn._num_transactions:
            raise ProgrammingError(f"Explicit {name}() forbidden within a Transaction context.")


def around(work: WorkBase) -> Iterator[WorkBase]:
    """Yield the requests that `work` is inside of."""
    outer = work._outer
    while outer is not None:
        yield outer
        outer = outer._outer


def retire(work: Any) -> None:
    """Let `work`, which nobody ended in time, be over: its connection is not its own any more."""
    work._slot, work.report = None, OVER
