"""How a request ends: commit or roll back, reset the session, see to room, give the connection back."""

from __future__ import annotations

from contextlib import suppress

from psycopg import Error, OperationalError, capabilities
from psycopg.pq import TransactionStatus

from serverless_pg_kit.acquire import Acquiring
from serverless_pg_kit.base import CLOSE_SECONDS
from serverless_pg_kit.commit import ending_problem, was_rejected
from serverless_pg_kit.decisions.census import Census
from serverless_pg_kit.decisions.cleaning import CleanReport, plan_reap, report_room
from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.decisions.ending import Ending
from serverless_pg_kit.events import Committed, Reaped, RolledBack, Yielded
from serverless_pg_kit.exchange import Answers, roll_back, run
from serverless_pg_kit.scope import Scope
from serverless_pg_kit.slots import Slot


class Cleaning(Acquiring):
    """The part of the sync engine that ends requests."""

    def _end(self, scope: Scope) -> CleanReport:
        if scope.report is not None:
            return scope.report
        with scope._lock:
            slot, scope._slot = scope._slot, None
            scope_is_ours, scope.report = scope.is_open, CleanReport("kept", "the request needed no connection")
        if slot is not None and not scope_is_ours:
            self._slots.abandon(slot)
        elif slot is not None:
            scope.report, problem = self._conclude(slot, scope)
            if problem is not None:
                raise problem
        return scope.report

    def _conclude(self, slot: Slot, scope: Scope) -> tuple[CleanReport, Exception | None]:
        """Bring the connection of an ended request home, or close it; return what was done and what to raise."""
        answers, report, ending = Answers(), CleanReport("closed", "interrupted"), Ending.DISCARD
        started = self._clock.monotonic()
        try:
            ending = self._ending(slot, scope)
            if ending in (Ending.ROLLBACK, Ending.FAILED):
                self._announce(RolledBack(slot.pid, self._rollback_reason(slot, scope)))
            report = self._home(slot, ending, self._close_deadline(scope.deadline), answers)
        finally:
            try:
                if report.decision != "kept":
                    self._drop(slot, report.reason)
            finally:
                slot.idle_since = self._clock.wall()
                self._slots.give_back(slot if report.decision == "kept" else None)
        problem = ending_problem(ending, answers)
        if ending is Ending.COMMIT and problem is None:
            self._announce(Committed(slot.pid, self._clock.monotonic() - started))
        return report, problem

    def _home(self, slot: Slot, ending: Ending, deadline: Deadline, answers: Answers) -> CleanReport:
        try:
            census = self._finish(slot, ending, deadline, answers)
        except Exception as error:
            self._close_failed(ending, answers, error)
            return CleanReport("closed", f"it could not be brought back to order: {type(error).__name__}")
        if slot.conn.closed:
            return CleanReport("closed", "it was lost, closed by the request, or busy when that ended")
        if not self._slots.is_current(slot):
            return CleanReport("closed", "the engine was closed, or a connection as old as this one found dead")
        return self._see_to_room(slot, census, deadline)

    def _finish(self, slot: Slot, ending: Ending, deadline: Deadline, answers: Answers) -> Census | None:
        """End the transaction and reset the session; return the census if one was due.

        `answers` receives the results of the message with the COMMIT. Raises whatever leaves the connection unusable.
        """
        if ending in (Ending.DISCARD, Ending.LOST):
            self._discard(slot)
            return None
        if ending in (Ending.ROLLBACK, Ending.FAILED):
            roll_back(slot.conn, deadline)
        closing = self._closing(slot, commit=ending is Ending.COMMIT)
        if closing.message:
            run(slot.conn, closing.message, deadline, answers)
        if ending is Ending.COMMIT and was_rejected(answers):
            run(slot.conn, "BEGIN", deadline)  # for the sake of psycopg's rollback: it forgets what was prepared
            roll_back(slot.conn, deadline)
            closing, answers = self._closing(slot, commit=False), Answers()
            run(slot.conn, closing.message, deadline, answers)
        census = self._read_close(slot, closing, answers)
        slot.baseline.restore(slot.conn)
        return census

    def _discard(self, slot: Slot) -> None:
        """Close a connection that cannot go on; what it may still be doing on the server is cancelled first."""
        if slot.conn.pgconn.transaction_status == TransactionStatus.ACTIVE and capabilities.has_cancel_safe():
            with suppress(Error):
                slot.conn.cancel_safe(timeout=CLOSE_SECONDS)
        slot.conn.close()

    def _see_to_room(self, slot: Slot, census: Census | None, deadline: Deadline) -> CleanReport:
        if census is None:
            return CleanReport("kept", "no census was due")
        report = report_room(census, self.settings.conn_utilization, self._reap(slot, census, deadline))
        if report.decision == "yielded":
            self._announce(Yielded(slot.pid, report.reason))
        return report

    def _reap(self, slot: Slot, census: Census, deadline: Deadline) -> tuple[int, ...]:
        """End idle sessions of the fleet if room is short; return their pids."""
        settings = self.settings
        order = plan_reap(
            census,
            conn_utilization=settings.conn_utilization,
            strategy=settings.strategy,
            min_idle_time=settings.min_idle_time,
            max_kills=settings.max_kills,
        )
        if order is None:
            return ()
        message = settings.statements.reap(self._fleet(slot), order.min_idle_seconds, order.limit)
        try:
            answers = run(slot.conn, message, deadline.within(CLOSE_SECONDS))
        except OperationalError as error:
            self._maintenance_failed("reap", error)
            return ()
        if answers.error is not None:
            self._maintenance_failed("reap", answers.error)
        killed = tuple(int(pid or 0) for pid, ended in answers.rows if ended == "t")
        if killed:
            self._announce(Reaped(killed))
        return killed
