"""Where requests are played that are rolled back: one connection for all, and a savepoint for each."""

from __future__ import annotations

import copy
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

from psycopg import Error, OperationalError, ProgrammingError
from psycopg.pq import TransactionStatus

from serverless_pg_kit.commit import ending_problem
from serverless_pg_kit.decisions.cleaning import CleanReport
from serverless_pg_kit.decisions.ending import Ending
from serverless_pg_kit.errors import AcquireTimeout
from serverless_pg_kit.exchange import Answers
from serverless_pg_kit.history import NEVER
from serverless_pg_kit.scope_base import WorkBase
from serverless_pg_kit.slots import Slot

T = TypeVar("T")

Dialogue = Generator[str, Answers, T]
"""What is said to the server in turn; it is sent the answers."""

KEPT = CleanReport("kept", "a test rolls it back")
OVER = CleanReport("closed", "the test that it belonged to is over")
CHECK = "SAVEPOINT {0}_check; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO SAVEPOINT {0}_check"
"""Raises what COMMIT would, and leaves the constraints as they were."""

SHARED = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max")
"""What a request may change on the connection object inside a transaction."""


class StageBase:
    """The requests that go on upon the connection of `slot`: a stack, each inside the one before it, and so are their
    savepoints. The shells say what its methods yield."""

    def __init__(self, engine: Any, slot: Slot) -> None:
        self._engine = engine
        self._slot = slot
        self._conn: Any = slot.conn
        self._requests: list[WorkBase] = []
        self._lock = threading.Lock()
        self._is_spent = False

    @property
    def _name(self) -> str:
        """The savepoint of the innermost request, or without one that of the test."""
        return f"serverless_pg_kit_{len(self._requests)}"

    def plays(self, work: WorkBase) -> bool:
        """Tell whether `work` goes on here."""
        return work in self._requests

    def patience(self, work: WorkBase) -> float:
        """Return the seconds that `work` may wait for its turn. Raises ``RuntimeError`` for another tenant's."""
        if work._tenant is not None:
            raise RuntimeError("rolled_back() plays all requests on one connection: it has none for another conninfo")
        return min(float(self._engine.settings.max_wait), work.deadline.remaining())

    def claim(self, work: WorkBase) -> bool:
        """Let `work` be the innermost request, if it is its turn; tell whether it was."""
        with self._lock:
            is_its_turn = not self._requests or self._requests[-1] in around(work)
            if is_its_turn:
                self._requests.append(work)
            return is_its_turn

    def open(self) -> Dialogue[None]:
        """Begin the test."""
        yield from self._must(f"SAVEPOINT {self._name}")

    def begin(self, work: WorkBase) -> Dialogue[Slot]:
        """Begin `work`, whose turn it is."""
        try:
            yield from self._must(f"SAVEPOINT {self._name}" + "; SET TRANSACTION READ ONLY" * bool(work.read_only))
        except BaseException:
            self._requests.remove(work)
            raise
        slot = copy.copy(self._slot)
        slot.routine, slot.steady_until = None, NEVER  # its end is this stage's
        return slot

    def end(self, slot: Slot, work: WorkBase) -> Dialogue[Exception | None]:
        """End `work`, and those inside it that nobody ended; return what its caller has to hear."""
        try:
            while self._requests[-1] is not work:
                yield from self.undo()
                retire(self._requests.pop())
            ending = self._engine._ending(slot, work)
            problem = yield from self._end(ending)
            work.committed = ending is Ending.COMMIT and problem is None
            return problem
        finally:
            self._requests.remove(work)

    def keep(self) -> Dialogue[None]:
        """Keep what the request has done so far, unless that has failed, as ``conn.commit()`` does."""
        self._refuse_inside_blocks("commit")
        error = None
        if not self._has_failed:
            error = yield from self._keep(f"RELEASE SAVEPOINT {self._name}; SAVEPOINT {self._name}")
        if error is not None or self._has_failed:
            yield from self.undo()
        if error is not None:
            raise error

    def roll_back(self) -> Dialogue[None]:
        """Undo what the request has done since its last commit, as ``conn.rollback()`` does."""
        self._refuse_inside_blocks("rollback")
        yield from self.undo()

    def undo(self) -> Dialogue[None]:
        """Go back to the savepoint of the innermost request."""
        yield from self._must(f"ROLLBACK TO SAVEPOINT {self._name}")

    def strike(self) -> Dialogue[bool]:
        """End the test: requests that go on are over. Return whether all can still be rolled back."""
        while self._requests:
            retire(self._requests.pop())
        try:
            answers = yield f"ROLLBACK TO SAVEPOINT {self._name}"
        except OperationalError:
            return True
        return answers.failed is None

    def late(self, seconds: float) -> AcquireTimeout:
        """Return the error of a request that waited for its turn in vain."""
        text = f"another request went on for {seconds:.2f} s: in rolled_back() they take turns"
        return AcquireTimeout(text, waited=seconds)

    def check_connection(self) -> None:
        """Raise ``psycopg.OperationalError`` if the connection is gone: somebody may still hold its lock."""
        if self._is_spent or self._conn.closed:
            raise OperationalError("the connection of rolled_back() is gone: a request lost it, or left it unusable")

    @property
    def _has_failed(self) -> bool:
        return bool(self._conn.pgconn.transaction_status == TransactionStatus.INERROR)

    def _end(self, ending: Ending) -> Dialogue[Exception | None]:
        for name in SHARED:
            setattr(self._conn, name, self._slot.baseline.attributes[name])
        if ending in (Ending.DISCARD, Ending.LOST, Ending.UNFINISHED):
            self._is_spent = True
            self._slot.line.close()
            return ending_problem(ending, Answers())
        cursors = "CLOSE ALL; " if len(self._requests) == 1 else ""
        error = None
        if ending is Ending.COMMIT:
            error = yield from self._keep(f"{cursors}RELEASE SAVEPOINT {self._name}")
        if ending is not Ending.COMMIT or error is not None:
            yield from self._must(f"ROLLBACK TO SAVEPOINT {self._name}; {cursors}RELEASE SAVEPOINT {self._name}")
        return error if ending is Ending.COMMIT else ending_problem(ending, Answers())

    def _keep(self, message: str) -> Dialogue[Error | None]:
        """Check what COMMIT would check, then say `message`; return the error of either."""
        answers = yield f"{CHECK.format(self._name)}; {message}"
        return answers.error

    def _must(self, message: str) -> Dialogue[None]:
        """Say `message`. Raises its error: without our savepoints the user's own SQL has ended the transaction."""
        answers = yield message
        if answers.error is not None:
            text = "something committed or rolled back by SQL of its own inside rolled_back()"
            raise RuntimeError(text) from answers.error

    def _refuse_inside_blocks(self, name: str) -> None:
        if self._conn._num_transactions:
            raise ProgrammingError(f"Explicit {name}() forbidden within a Transaction context.")


def around(work: WorkBase) -> Iterator[WorkBase]:
    """Yield the requests that `work` is inside of."""
    outer = work._outer
    while outer is not None:
        yield outer
        outer = outer._outer


def retire(work: WorkBase) -> None:
    """Let `work`, which nobody ended in time, be over: its connection is not its own any more."""
    work._slot, work.report = None, OVER
