# Written by .ci/make_sync.py from aio/clean.py: edit that, and run it.
"""How a request ends: commit or roll back, reset the session, see to room, give the connection back."""

from __future__ import annotations

from contextlib import suppress

from psycopg import Error, OperationalError, capabilities
from psycopg.pq import ConnStatus, TransactionStatus

from serverless_pg_kit import processes
from serverless_pg_kit.acquire import Acquiring
from serverless_pg_kit.clean_base import CLOSE_SECONDS, OVER, CleaningBase
from serverless_pg_kit.closing import Closing
from serverless_pg_kit.commit import has_committed, outcome_of
from serverless_pg_kit.decisions.cleaning import INTERRUPTED, CleanReport, report_room
from serverless_pg_kit.decisions.deadline import Deadline, milliseconds
from serverless_pg_kit.decisions.ending import Ending, Outcome
from serverless_pg_kit.decisions.lease import Lease
from serverless_pg_kit.events import Committed, Yielded
from serverless_pg_kit.exchange import Answers
from serverless_pg_kit.routine import Routine
from serverless_pg_kit.scope import Work
from serverless_pg_kit.session import has_prepared
from serverless_pg_kit.slots import Slot
from serverless_pg_kit.statements import ENDLESS
from serverless_pg_kit.waiting import FAILURES

NOTHING_DUE = CleanReport("kept", "no census was due")
POOLED = CleanReport("kept", "a pooler stands between: nobody is counted or ended, its sessions are not ours")


class Cleaning(Acquiring, CleaningBase):
    """The part of the engine that ends requests."""

    def _end_slot(self, slot: Slot, scope: Work) -> CleanReport:
        """End `scope`, which had `slot` until now; its report says that it was interrupted."""
        if scope._process != processes.generation:
            self._slots.abandon(slot)
            return INTERRUPTED
        scope.report, problem = self._conclude(slot, scope)
        if problem is not None:
            raise problem
        return scope.report

    def _conclude(self, slot: Slot, scope: Work) -> tuple[CleanReport, Exception | None]:
        """Bring the connection of an ended request home, or close it; return what was done and what to raise."""
        answers, report, ending = Answers(), INTERRUPTED, Ending.DISCARD
        started = self._clock.monotonic()
        try:
            if slot.hook is not None:
                self._end_watch(slot)
            ending = self._ending(slot, scope)
            if ending is not Ending.COMMIT:
                self._announce_rollback(slot, scope, ending)
            deadline = Deadline(max(scope.until, started + CLOSE_SECONDS), self._clock.monotonic)
            report = self._home(slot, scope, ending, deadline, answers)
        finally:
            scope.committed = ending is Ending.COMMIT and has_committed(answers)
            self._part_from(slot, report)
        if scope.committed:
            self._announce.often(Committed, self._committed, slot.pid, started)
            return report, None
        return report, self._problem(slot, ending, answers)

    def _home(self, slot: Slot, scope: Work, ending: Ending, deadline: Deadline, answers: Answers) -> CleanReport:
        """End the request of `slot`, reset its session and see to room; return what is to become of it."""
        routine = self._usual_routine(slot) if ending in (Ending.COMMIT, Ending.NOTHING) else None
        lease, waking = self._plan_sleep(slot) if routine is None else (routine.lease, routine.lease)
        try:
            self._finish(slot, ending, waking, deadline, answers, routine)
        except FAILURES as error:
            return self._not_home(ending, answers, error)
        if slot.conn.pgconn.status == ConnStatus.BAD:
            return CleanReport("closed", "it was lost, closed by the request, or busy when that ended")
        if ending is not Ending.COMMIT and self._is_misled(slot, scope):
            return CleanReport("closed", "it leads to a server that takes no writes")
        if slot.generation != self._slots.generation:
            return CleanReport("closed", OVER)
        slot.lent += 1
        if routine is not None:
            return NOTHING_DUE
        try:
            return self._settle(slot, lease, waking, deadline)
        except Exception as error:  # what is committed stays so
            self._maintenance_failed("room", error)
            return CleanReport("closed", f"room could not be seen to: {type(error).__name__}")

    def _settle(self, slot: Slot, lease: Lease | None, waking: Lease | None, deadline: Deadline) -> CleanReport:
        """Note what the close has set, and see to room."""
        if waking is not None and waking.seconds != slot.lease:
            self._change_lease(slot, waking)
        slot.routine = self._next_routine(slot, lease)
        if slot.census is None and (lease is None or lease.seconds > 0):
            return NOTHING_DUE if slot.direct else POOLED
        return self._see_to_room(slot, lease, deadline)

    def _finish(
        self,
        slot: Slot,
        ending: Ending,
        lease: Lease | None,
        deadline: Deadline,
        answers: Answers,
        routine: Routine | None = None,
    ) -> None:
        """End the transaction and reset the session; `routine` has the message, if that is the usual one.

        `answers` receives the results of the message with the COMMIT. Raises whatever leaves the connection unusable.
        """
        if ending is not Ending.COMMIT and ending is not Ending.NOTHING:
            if ending in (Ending.DISCARD, Ending.LOST, Ending.UNFINISHED):
                self._discard(slot)
                return
            self._roll_back(slot, deadline)
        is_open = slot.conn.pgconn.transaction_status != TransactionStatus.IDLE
        if routine is None:
            closing = self._closing(slot, lease, commit=is_open)
        else:
            closing = routine.closing if is_open else routine.idle_closing
        if closing.message:
            slot.line.run(closing.message, deadline, answers)
        self._take_in(slot, ending, lease, closing, deadline, answers)
        self._restore_user(slot, lease, deadline)
        slot.changed = {} if lease is None else ENDLESS  # by the next open, if that is routine: it takes no note
        self._put_back(slot)
        if slot.configures_session and self.settings.reset and slot.direct:
            self._reconfigure(slot)

    def _take_in(
        self, slot: Slot, ending: Ending, lease: Lease | None, closing: Closing, deadline: Deadline, answers: Answers
    ) -> None:
        """Take in the `answers` to a close exchange; mend what failed in it. Raises what rules the connection out."""
        if answers.failed is not None:
            closing, answers = self._mend(slot, ending, lease, closing, deadline, answers)
        if answers.failed is not None or closing.tells:
            self._read_close(slot, closing, answers)

    def _restore_user(self, slot: Slot, lease: Lease | None, deadline: Deadline) -> None:
        """Reset the session once more if it still goes by another user name: COMMIT itself may have changed it, or the
        close exchange was a routine. Raises what rules the connection out."""
        if slot.has_other_user and self.settings.reset and slot.direct:
            closing = self._closing(slot, lease, commit=False)
            self._read_close(slot, closing, slot.line.run(closing.message, deadline))

    def _roll_back(self, slot: Slot, deadline: Deadline) -> None:
        """Roll back as psycopg does, which discards all prepared statements, the kit's too, if it has any."""
        discards = has_prepared(slot.conn)
        slot.line.roll_back(deadline)
        if discards:
            self._forget_prepared(slot)

    def _mend(
        self, slot: Slot, ending: Ending, lease: Lease | None, closing: Closing, deadline: Deadline, answers: Answers
    ) -> tuple[Closing, Answers]:
        """Send again what is left of a close exchange that failed, if that can help; return it and its answers."""
        if ending is Ending.COMMIT and outcome_of(answers) is Outcome.REJECTED:
            slot.line.run(b"BEGIN", deadline)  # for the sake of psycopg's rollback: it forgets what was prepared
            self._roll_back(slot, deadline)
        elif not self._lacks_prepared(slot, answers):
            return closing, answers
        elif slot.conn.pgconn.transaction_status != TransactionStatus.IDLE:
            slot.line.run(b"ROLLBACK", deadline)
        closing = self._closing(slot, lease, commit=False)
        return closing, slot.line.run(closing.message, deadline) if closing.message else Answers()

    def _discard(self, slot: Slot) -> None:
        """Close a connection that cannot go on; what it may still be doing on the server is cancelled first."""
        if slot.conn.pgconn.transaction_status == TransactionStatus.ACTIVE and capabilities.has_cancel_safe():
            with suppress(Error):
                slot.conn.cancel_safe(timeout=CLOSE_SECONDS)
        slot.line.close()

    def _see_to_room(self, slot: Slot, lease: Lease | None, deadline: Deadline) -> CleanReport:
        """Make room if a census of this request found that it is short, or give the connection up."""
        census, settings = slot.census, self.settings
        killed = self._reap(slot, deadline)
        if lease is not None and lease.seconds <= 0:
            report = CleanReport("yielded" if settings.lease else "closed", lease.reason, census, killed)
        elif census is None:
            return NOTHING_DUE
        elif not self._settle_lease(slot, deadline):
            return CleanReport("closed", "it was lost, or ended by another cleaner, while it made room", census, killed)
        else:
            report = report_room(census, settings.conn_utilization, self._strategy(slot), killed)
        if report.decision == "yielded":
            slot.history.note_yield()
            self._announce(Yielded(slot.pid, report.reason))
        return report

    def _settle_lease(self, slot: Slot, deadline: Deadline) -> bool:
        """Give `slot` the lease that the census of this very request asks for, if it is shorter than the one it has, or
        if it is the cleaner's; tell whether the connection still lives."""
        lease = self._lease(slot)
        if lease is not None and not slot.conn.closed and self._is_unsettled(slot, lease):
            [message] = self.settings.statements.assignments({"idle_session_timeout": milliseconds(lease.seconds)})
            try:
                slot.line.run(message.encode(), deadline.within(CLOSE_SECONDS))
            except OperationalError:
                return False
            self._change_lease(slot, lease)
        return not slot.conn.closed

    def _reap(self, slot: Slot, deadline: Deadline) -> tuple[int, ...]:
        """End idle sessions of the fleet if room is short; return their pids."""
        order = self._reap_order(slot)
        if order is None:
            return ()
        slot.history.note_reap(order.interval)
        message = self.settings.statements.reap(self._fleet(slot), order.min_idle_seconds, order.limit, order.interval)
        answers, started = Answers(), self._clock.monotonic()
        try:
            slot.line.run(message.encode(), deadline.within(CLOSE_SECONDS), answers)
        except OperationalError as error:
            return self._reap_failed(slot, answers.error or error)
        return self._read_reap(slot, answers, order.interval, started)
