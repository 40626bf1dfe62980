"""What needs no waiting when a request ends: shared by both shells."""

from __future__ import annotations

from psycopg import Error
from psycopg.pq import TransactionStatus

from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.closing import Closing, plan_close
from serverless_pg_kit.commit import ending_problem
from serverless_pg_kit.decisions.cleaning import CleanReport, Reap, Strategy, plan_reap
from serverless_pg_kit.decisions.deadline import rounded_span
from serverless_pg_kit.decisions.ending import Ending, choose_ending, rollback_reason
from serverless_pg_kit.decisions.lease import Lease
from serverless_pg_kit.decisions.role import is_misled
from serverless_pg_kit.events import (
    Committed,
    Leased,
    NotCommitted,
    Reaped,
    Released,
    RolledBack,
)
from serverless_pg_kit.exchange import Answers, is_busy
from serverless_pg_kit.opening import LEASES_VERSION
from serverless_pg_kit.routine import Routine, plan_routine
from serverless_pg_kit.scope_base import WorkBase
from serverless_pg_kit.session import AnyConnection
from serverless_pg_kit.slots import Slot

OVER = "the engine was closed, or a connection as old as this one found dead"
INTRANS = int(TransactionStatus.INTRANS)

CLOSE_SECONDS = 1.0
"""Least time for the end of a request, even past its deadline: a COMMIT that is not waited for is one unknown."""


class CleaningBase(EngineBase):
    """The part of cleaning that waits for nothing."""

    def _ending(self, slot: Slot, scope: WorkBase) -> Ending:
        if slot.ahead is not None:
            return self._unused_ending(slot)
        ending = self._wanted_ending(slot.conn, scope)
        # A COMMIT that was never sent is not an unknown one.
        return Ending.LOST if ending is Ending.COMMIT and not slot.line.is_alive() else ending

    def _unused_ending(self, slot: Slot) -> Ending:
        """Return how to end a transaction that was sent ahead and that nobody has used: the close exchange does it."""
        slot.ahead.end()
        is_open = slot.conn.pgconn.transaction_status == INTRANS and slot.line.is_alive()
        return Ending.NOTHING if is_open else Ending.DISCARD

    def _wanted_ending(self, conn: AnyConnection, scope: WorkBase) -> Ending:
        status = TransactionStatus.ACTIVE if is_busy(conn) else conn.pgconn.transaction_status
        if status == INTRANS and scope._wants_commit and not scope._spoiled:
            return Ending.COMMIT  # what is to be decided otherwise does not matter here
        return choose_ending(
            status,
            scope._wants_commit,
            spoiled=scope._spoiled,
            tells_failure=scope._tells_failure,
            autocommit=conn.autocommit,
            closed_by_user=status == TransactionStatus.UNKNOWN and not conn.broken,
        )

    def _announce_rollback(self, slot: Slot, scope: WorkBase, ending: Ending) -> None:
        if ending in (Ending.ROLLBACK, Ending.FAILED):
            status = slot.conn.pgconn.transaction_status
            self._announce(RolledBack(slot.pid, rollback_reason(status, spoiled=scope._spoiled)))

    def _is_misled(self, slot: Slot, scope: WorkBase) -> bool:
        """Tell whether the connection of a request that failed, with its session reset by now, leads to a server that
        takes no writes. If it did take them when it was connected to, the other connections lead to it as well."""
        is_refused, slot.refused_write = slot.refused_write or scope._refused_write, False
        asked = slot.mode.read_only if scope.read_only is None else scope.read_only
        if not is_refused or not is_misled(slot.reading_statuses, asked=bool(asked)):
            return False
        if slot.was_writable:
            self._condemn("a connection as old as this one leads to a server that takes no more writes")
        return True

    def _strategy(self, slot: Slot) -> Strategy:
        """Return the strategy: before version 14 there are no leases, there idle sessions are ended instead."""
        strategy = self.settings.strategy
        return strategy if strategy != "lease" or slot.server_version >= LEASES_VERSION else "minimum_idle_time"

    def _usual_routine(self, slot: Slot) -> Routine | None:
        """Return the routine of `slot`, if it says all that is to be said at the end of this request."""
        routine, history = slot.routine, slot.history
        if routine is None or slot.wanted_timeout is not None or slot.has_other_user:
            return None
        if self._clock.wall() >= history.census_at:
            return None
        return routine if routine.lease is None or routine.lease == history.calm else None

    def _next_routine(self, slot: Slot, lease: Lease | None) -> Routine | None:
        """Return the routine of `slot` from now on: there is one while there is room, unless ``configure`` has to
        follow each reset."""
        is_usual = lease is None or lease == slot.history.calm
        if not is_usual or slot.elected is not None or (slot.configures_session and self.settings.reset):
            return None
        if slot.routine is not None and slot.routine.lease == lease:
            return slot.routine
        return plan_routine(slot, self.settings.statements, lease, self.settings.session, reset=self.settings.reset)

    def _plan_sleep(self, slot: Slot) -> tuple[Lease | None, Lease | None]:
        """Return the lease for the sleep that follows, and that for what is still to be done before it; should the
        decision fail, COMMIT comes first."""
        try:
            lease = self._lease(slot)
            return lease, lease if self._reap_order(slot) is None else self._awake(lease)
        except Exception as error:
            self._maintenance_failed("room", error)
            return None, None

    def _lease(self, slot: Slot) -> Lease | None:
        """Return how long `slot` may stay idle after this request, ``None`` where there are no leases."""
        if not slot.direct or self._strategy(slot) != "lease":
            return None
        lease = slot.history.lease(slot.born, slot.waited)
        if slot.elected is None and not slot.is_autocommit:
            return lease
        return self._longer_lease(slot, lease)

    def _longer_lease(self, slot: Slot, lease: Lease) -> Lease:
        """Return the lease of a cleaner, whose session holds the election until its interval is over, or of an
        autocommit connection, to which no open exchange says when a request begins."""
        longest = self.settings.lease
        if slot.is_autocommit:
            return lease if lease.seconds <= 0 else Lease(longest, "autocommit: it has one lease, in use and idle")
        left = 0.0 if slot.elected is None else slot.elected[1] - self._clock.wall()
        return lease._replace(seconds=min(max(lease.seconds, left), longest))

    def _closing(self, slot: Slot, lease: Lease | None, *, commit: bool) -> Closing:
        """Return the close exchange: an empty message if there is nothing to do."""
        settings, now = self.settings, self._clock.wall()
        is_due = slot.direct and (slot.wants_census or (now >= slot.history.census_at and self._may_census(slot)))
        return plan_close(
            slot,
            settings.statements,
            commit=commit,
            reset=settings.reset,
            lease=None if lease is None else lease.seconds,
            now=now,
            session=settings.session,
            census=self._census_message(slot) if is_due else "",
        )

    def _read_close(self, slot: Slot, closing: Closing, answers: Answers) -> None:
        """Take note of the answer to the close exchange. Raises the error in it, unless the census alone failed."""
        error = answers.error
        if error is not None and not (closing.census and answers.commits == closing.commits):
            raise error
        slot.prepared = closing.prepares if slot.prepared is None else slot.prepared
        if closing.timeout is not None:
            slot.prepared_timeout, slot.wanted_timeout = closing.timeout, None
            slot.prepared_span = rounded_span(closing.timeout)
        if error is not None:
            self._census_failed(slot, error)
        elif closing.census:
            slot.census = self._read_census(slot, answers.rows[0])

    def _put_back(self, slot: Slot) -> None:
        """Put the connection's own side back to what it was before the request. Raises what rules the connection
        out."""
        if slot.hook is not None:
            self._end_watch(slot)
        slot.baseline.restore(slot.conn)

    def _close_failed(self, ending: Ending, answers: Answers, error: BaseException) -> None:
        """Announce that the end of a request failed, unless the caller hears of it anyway."""
        if ending_problem(ending, answers) is None:
            self._maintenance_failed("close", error)

    def _not_home(self, ending: Ending, answers: Answers, error: BaseException) -> CleanReport:
        """Return what is to become of a connection whose request could not be ended in good order."""
        self._close_failed(ending, answers, error)
        return CleanReport("closed", f"it could not be brought back to order: {type(error).__name__}")

    def _reap_order(self, slot: Slot) -> Reap | None:
        """Return whom to end, by the census of this request; a fleet that elects its cleaner is asked once an interval.

        ``None`` if nobody is to be ended.
        """
        settings = self.settings
        if slot.census is None or not slot.direct:
            return None
        order = plan_reap(
            slot.census,
            conn_utilization=settings.conn_utilization,
            strategy=self._strategy(slot),
            min_idle_time=settings.min_idle_time,
            max_kills=settings.max_kills,
            interval=settings.census_ttl,
        )
        return None if order is not None and order.interval and not slot.history.may_reap else order

    def _is_unsettled(self, slot: Slot, lease: Lease) -> bool:
        has = slot.lease or 0.0
        return 0 < lease.seconds < has or (slot.elected is not None and lease.seconds > has)

    def _awake(self, lease: Lease | None) -> Lease | None:
        """Return `lease`, but long enough for what is still to be done before the connection sleeps."""
        return None if lease is None else lease._replace(seconds=max(lease.seconds, CLOSE_SECONDS))

    def _committed(self, pid: int, started: float) -> Committed:
        return Committed(pid, self._clock.monotonic() - started)

    def _problem(self, slot: Slot, ending: Ending, answers: Answers) -> Exception | None:
        """Return the error that the caller has to hear of, and announce it."""
        problem = ending_problem(ending, answers)
        if problem is not None:
            self._announce(NotCommitted(slot.pid, type(problem).__name__, getattr(problem, "sqlstate", None)))
        return problem

    def _read_reap(self, slot: Slot, answers: Answers, interval: float, started: float) -> tuple[int, ...]:
        """Return the pids of those that the reaper ended, which it set out for at `started`. If it was an elected one,
        it stays that for `interval`."""
        if answers.error is not None:
            return self._reap_failed(slot, answers.error)
        killed = tuple(int(pid or 0) for pid, ended, _, _ in answers.rows if ended == "t")
        if interval and answers.rows and answers.rows[0][3] == "t":
            term = interval if killed else 0.0  # whoever found nobody need not keep others from looking
            slot.elected, slot.routine = (int(answers.rows[0][2] or 0), self._clock.wall() + term), None
        if killed:
            self._announce(Reaped(killed, self._clock.monotonic() - started))
        return killed

    def _reap_failed(self, slot: Slot, error: Error) -> tuple[int, ...]:
        """Announce that nobody could be ended, unless this session was ended first: by a cleaner or its own lease."""
        if not slot.conn.closed:
            self._maintenance_failed("reap", error)
        return ()

    def _change_lease(self, slot: Slot, lease: Lease) -> None:
        slot.lease = lease.seconds
        if lease.seconds > 0:
            self._announce.often(Leased, Leased, slot.pid, lease.seconds, lease.reason)

    def _part_from(self, slot: Slot, report: CleanReport) -> None:
        """Do with the connection what the `report` says: keep it or close it. Its place is free in either case."""
        try:
            if report.decision != "kept":
                self._drop(slot, report.reason)
        finally:
            self._release(slot, keep=report.decision == "kept")

    def _release(self, slot: Slot, *, keep: bool) -> None:
        """Give the place of `slot` to whoever is next in line; it goes to sleep if it is to be kept."""
        now = self._clock.wall()
        slot.idle_since, slot.census, slot.refused_write = now, None, False
        slot.steady_until = self._steady_until(slot, now)
        slot.history.released_at = now
        begun = slot.begun  # read while it is ours
        is_kept = self._slots.give_back(slot if keep else None)
        if keep and not is_kept:
            self._drop(slot, OVER)
        if self._announce.is_heard:
            self._announce(Released(slot.pid, self._clock.monotonic() - begun, is_kept))
