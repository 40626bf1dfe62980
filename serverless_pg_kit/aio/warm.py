"""The ordinary request on a warm connection, written out in one go.

`Acquiring` and `Cleaning` find out step by step what a request needs. Most requests need nothing but what a `Routine`
holds ready, and for those the steps themselves would cost more than all the rest: each call of a function counts where
everything together takes some tens of microseconds. So here stand the same steps once more for that one case, in the
same order. Whatever is not as usual is left to the general way, from the point that was reached.
"""

from __future__ import annotations

import math

from psycopg import OperationalError
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGresult

from serverless_pg_kit import processes
from serverless_pg_kit.aio.clean import NOTHING_DUE, Cleaning
from serverless_pg_kit.aio.scope import Work
from serverless_pg_kit.aio.waiting import FAILURES
from serverless_pg_kit.aio.watch import GRACE
from serverless_pg_kit.clean_base import CLOSE_SECONDS, OVER
from serverless_pg_kit.commit import has_committed
from serverless_pg_kit.decisions.classify import Failure
from serverless_pg_kit.decisions.cleaning import INTERRUPTED, UNTOUCHED, CleanReport
from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.decisions.ending import Ending
from serverless_pg_kit.exchange import TUPLES_OK, Answers
from serverless_pg_kit.opening import Opening
from serverless_pg_kit.routine import Routine, timed_opening
from serverless_pg_kit.slots import SESSION_USER, Slot

INTRANS = int(TransactionStatus.INTRANS)

USUAL = Opening(b"")
"""What stands for the opening of a routine where all that matters is that it asks for no census."""


class Warm(Cleaning):
    """The part of the engine that serves ordinary requests."""

    async def _acquire(self, scope: Work) -> Slot:
        started, wall, until = self._now(), self._wall(), scope.until
        remaining = until - started
        slot: Slot | None = None
        if (
            remaining >= self._ample
            and scope._tenant is None
            and scope.isolation_level is None
            and scope.read_only is None
            and scope.transaction is True
            and self._slots.process == processes.generation
        ):
            slot = self._slots.take_steady(wall, remaining)
        if slot is None:
            return await super()._acquire(scope)
        results: list[PGresult] = []
        conn, routine = slot.conn, slot.routine
        assert routine is not None
        slot.begun = started
        try:
            slot.line.enter_loop(slot.baseline)  # async only
            if remaining == math.inf:
                message = routine.opening
            elif slot.prepared_span[0] <= remaining < slot.prepared_span[1]:
                message, slot.latest_timeout = routine.prepared_opening, slot.prepared_timeout
            else:
                message = timed_opening(slot, routine, remaining)
            is_watched = remaining < math.inf
            is_watched = True  # async only - any task may be cancelled, and more than once
            if is_watched and slot.hook is not None:  # it still stands where it stood in the request before
                slot.watch.until, slot.watch.server_helps_until = until, started + GRACE
            elif is_watched or slot.hook is not None:
                self._watch(slot, started, until)
            conn.pgconn.send_query(message)
            # Nobody else has the connection: its lock need not be taken.
            await slot.line.receive(results, started, started + self._patience, self._now)
            is_open = results[-1].status <= TUPLES_OK  # what follows an error in a message is not run
        except BaseException as error:
            slot = await self._recover(slot, scope, Answers(results, conn), error)
        else:
            if is_open:
                self._announce.count_reuse()
            else:
                slot = await self._recover(slot, scope, Answers(results, conn))
        return slot

    async def _recover(self, slot: Slot, scope: Work, answers: Answers, error: BaseException | None = None) -> Slot:
        """Return the slot of a request whose open went wrong, by `error` or as the `answers` tell: the same one, opened
        once more, or a new one."""
        begun = slot.begun
        try:
            if await self._reopen(slot, scope, answers, error) is None:
                self._announce.count_reuse()
            else:
                slot = await self._open_fresh(scope, self._retry(scope, slot.target, begun))
        except BaseException:
            slot.line.close()
            self._slots.give_back(None)
            raise
        self._watch(slot, begun, scope.until)
        return slot

    async def _reopen(self, slot: Slot, scope: Work, answers: Answers, error: BaseException | None) -> Failure | None:
        """Open the connection once more, if that can help; return how it turned out dead."""
        deadline = Deadline(slot.begun + self._patience, self._clock.monotonic)
        try:
            if error is not None:
                raise error
            answers = await self._open_again(slot, scope, USUAL, answers, deadline)
        except OperationalError as lost:
            return self._open_lost(slot, answers, lost, self._patience)
        except BaseException:
            self._drop(slot, "interrupted")
            raise
        return None if answers.failed is None else self._open_failed(slot, answers)

    async def _end(self, scope: Work) -> CleanReport:
        if scope.report is not None:
            return scope.report
        if scope._lock is None:
            slot, scope._slot, scope.report = scope._slot, None, INTERRUPTED
        else:
            async with scope._lock:  # somebody else may be acquiring
                slot, scope._slot, scope.report = scope._slot, None, INTERRUPTED
        if slot is None:
            scope.report = UNTOUCHED
            return UNTOUCHED
        conn, wall = slot.conn, self._wall()
        if (
            wall >= slot.steady_until
            or not scope._wants_commit
            or scope._spoiled
            or scope._process != processes.generation
            or conn.pgconn.transaction_status != INTRANS
            or conn._num_transactions  # this and what follows is `is_busy`
            or conn._pipeline is not None
            or conn._tpc is not None
            or conn.lock.locked()
            or (slot.hook is not None and slot.watch.must_end)
            or slot.line.poll(0)
        ):
            return await self._end_slot(slot, scope)
        return await self._end_usual(slot, scope, wall)

    async def _end_usual(self, slot: Slot, scope: Work, wall: float) -> CleanReport:
        """Commit, and bring the connection home. `wall` is the time of day."""
        results: list[PGresult] = []
        conn, routine, sent, begun = slot.conn, slot.routine, None, self._now()
        assert routine is not None
        until = begun + CLOSE_SECONDS
        if until < scope.until:
            until = scope.until
        report, has_worked = INTERRUPTED, False
        try:
            async with conn.lock:
                conn.pgconn.send_query(routine.closing.message)
                sent = conn
                await slot.line.receive(results, begun, until, self._now)
            has_worked = results[-1].status <= TUPLES_OK
            while conn.pgconn.notifies():
                pass
            has_same_user = conn.pgconn.parameter_status(SESSION_USER) == slot.user
            if not (has_worked and has_same_user and slot.baseline.is_kept(conn)):
                await self._tidy(slot, routine, Answers(results, conn), Deadline(until, self._now))
            report = NOTHING_DUE
        except FAILURES as error:
            report = self._not_home(Ending.COMMIT, Answers(results, sent), error)
        finally:
            scope.report = report
            if has_worked and report is NOTHING_DUE:
                scope.committed = True
                slot.idle_since = slot.history.released_at = wall
                if not self._slots.give_back(slot):
                    self._drop(slot, OVER)
            else:
                scope.committed = has_committed(results)
                self._part_from(slot, report)
        if scope.committed:
            self._announce.count_commit()
            return report
        problem = self._problem(slot, Ending.COMMIT, Answers(results, sent))
        if problem is not None:
            raise problem
        return report

    async def _tidy(self, slot: Slot, routine: Routine, answers: Answers, deadline: Deadline) -> None:
        """Do what is left to do after a close exchange that was not enough: mend what failed in it, and put back what
        the request, or its COMMIT, has changed. Raises what rules the connection out."""
        await self._take_in(slot, Ending.COMMIT, routine.lease, routine.closing, deadline, answers)
        await self._restore_user(slot, routine.lease, deadline)
        self._put_back(slot)
