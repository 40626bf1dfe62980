"""The sync shell: it acts on decisions and holds no policy."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from psycopg import Connection, Error, IsolationLevel, OperationalError, capabilities
from psycopg.pq import ConnStatus, TransactionStatus

from serverless_pg_kit.base import CLOSE_SECONDS, EngineBase
from serverless_pg_kit.connect import Address, Refusal, attempt, resolve
from serverless_pg_kit.conninfo import ConnParams
from serverless_pg_kit.decisions.census import Census
from serverless_pg_kit.decisions.classify import Failure, FailureKind, most_telling
from serverless_pg_kit.decisions.cleaning import CleanReport, plan_reap, report_room
from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.decisions.ending import Ending
from serverless_pg_kit.errors import AcquireTimeout
from serverless_pg_kit.events import Committed, Connected, Reaped, Retrying, Reused, RolledBack, Yielded
from serverless_pg_kit.exchange import (
    Answers,
    ExchangeTimeout,
    ending_problem,
    is_alive,
    roll_back,
    run,
    was_rejected,
)
from serverless_pg_kit.retry import Retry
from serverless_pg_kit.scope import JoinedScope, Scope
from serverless_pg_kit.settings import Settings
from serverless_pg_kit.slots import Slot, Waiter
from serverless_pg_kit.waiting import drive


class Engine(EngineBase):
    """Direct PostgreSQL connections for one process, healthy across freezes, bursts and restarts.

    Takes a `Settings` object, or single settings by name; what is not named comes from ``SERVERLESS_PG_<NAME>``.
    Opens nothing until a request needs a connection, and starts no thread. Make it once, at module level; its methods
    may be called from several threads. Raises `SettingsError` for bad settings.
    """

    def __init__(self, settings: Settings | None = None, /, **names: Any) -> None:
        super().__init__(settings, **names)
        self._current: ContextVar[Scope | None] = ContextVar("serverless_pg_kit.scope", default=None)

    # Requests

    @contextmanager
    def request(
        self,
        *,
        deadline: float | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        join: bool = True,
    ) -> Iterator[Connection[Any]]:
        """Give a connection, inside a transaction, for the length of a ``with`` block; the engine closes it.

        Success commits, an exception rolls back. `deadline` is in seconds from now: it bounds the acquisition and, on
        the server, every statement; ``None`` inherits that of an enclosing request, otherwise there is no limit;
        ``math.inf`` opts out. `isolation_level` and `read_only` hold for this transaction; ``None`` leaves them to the
        connection. A request inside a request joins it, unless `join` is False.

        Raises `AcquireTimeout`, `TooManyConnections`, `ConnectRejected` or `CredentialsRejected` before the block, and
        `TransactionFailed`, `CommitUnknown` or the server's error about COMMIT after it.
        """
        with self.scope(deadline=deadline, isolation_level=isolation_level, read_only=read_only, join=join) as scope:
            yield scope.connection

    def scope(
        self,
        *,
        deadline: float | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        join: bool = True,
    ) -> Scope:
        """Return a request to enter by ``with``; it acquires nothing before its `connection` is touched.

        Arguments and errors are those of `request`.
        """
        outer = self._open_scope()
        if outer is not None and join:
            return JoinedScope(outer)
        inherited = outer.deadline if outer is not None and deadline is None else self._deadline(deadline)
        return Scope(self, inherited, isolation_level, read_only)

    @property
    def connection(self) -> Connection[Any]:
        """The connection of the current request, acquired at the first touch.

        Raises ``RuntimeError`` outside a request, and what `request` raises.
        """
        scope = self._open_scope()
        if scope is None:
            raise RuntimeError("no request is open: use @with_db, engine.request(), engine.scope() or engine.connect()")
        return scope.connection

    def connect(self, *, deadline: float | None = None) -> Connection[Any]:
        """Begin a request by hand and return its connection; end it with `clean`, best in a ``finally``.

        `deadline` and errors are those of `request`. If a request is open, its connection is returned, unless that
        was lost meanwhile.
        """
        scope = self._open_scope()
        if scope is not None and scope.has_connection and not is_alive(scope.connection.pgconn):
            self._abort(scope)
            scope = None
        if scope is None:
            scope = Scope(self, self._deadline(deadline), None, None)
            conn = scope.connection
            self._current.set(scope)
            return conn
        return scope.connection

    def clean(self) -> CleanReport:
        """End the request that `connect` began: commit, or roll back a failed transaction; then see to room.

        Without a request it sees to room over an idle connection, if there is one. Raises what the end of `request`
        raises, but never `TransactionFailed` for a transaction that had failed before.
        """
        scope = self._open_scope()
        if scope is None:
            return self._clean_idle()
        self._current.set(None)
        scope.respond(400)
        return self._end(scope)

    def close(self) -> None:
        """Roll back the current request, and close all connections: idle ones now, others when their requests end.

        The engine can be used again; it opens new connections then.
        """
        scope = self._open_scope()
        if scope is not None:
            self._abort(scope)
        self._reclaim()
        self._condemn("the engine was closed")

    def census(self) -> Census:
        """Ask the server now, over a connection of its own, how many connections there are and how many may come.

        Raises what `request` raises, and ``RuntimeError`` if the server cannot tell, as behind a pooler.
        """
        slot = self._acquire(Scope(self, self._deadline(None), None, None))
        slot.census_at = 0.0
        try:
            census = self._finish(slot, Ending.ROLLBACK, self._close_deadline(self._deadline(0)), Answers())
        except BaseException:
            self._drop(slot, "the census failed")
            raise
        finally:
            self._slots.give_back(None if slot.conn.closed else slot)
        if census is None:
            raise RuntimeError("there is no census: a pooler stands between, or the server refused it (see the log)")
        return census

    def _open_scope(self) -> Scope | None:
        """Return the current request; not one that has ended or is the parent's: tasks and forks inherit those."""
        scope = self._current.get()
        return scope if scope is not None and scope.is_open else None

    # Acquire: wait in line, look at the connection, connect if need be, open

    def _acquire(self, scope: Scope) -> Slot:
        self._check_process()
        self._reclaim()
        retry = self._retry(scope.deadline)
        slot = self._wait_in_line(retry)
        try:
            return self._serve(slot, retry, scope)
        except BaseException:
            self._slots.give_back(None)
            raise

    def _wait_in_line(self, retry: Retry) -> Slot | None:
        event = threading.Event()
        waiter = Waiter(event.set)
        try:
            if not self._slots.ask(waiter):
                event.wait(min(retry.deadline.remaining(), threading.TIMEOUT_MAX))
        except BaseException:
            if not self._slots.withdraw(waiter):
                self._slots.give_back(waiter.slot)
            raise
        if not waiter.granted and self._slots.withdraw(waiter):
            raise AcquireTimeout(
                f"all {self._slots.max_size} connections of this process were in use for {retry.waited:.2f} s:"
                " raise max_size or max_wait, or end requests sooner",
                waited=retry.waited,
            )
        return waiter.slot

    def _serve(self, slot: Slot | None, retry: Retry, scope: Scope) -> Slot:
        if slot is not None and self._is_usable(slot) and self._open(slot, retry, scope, fresh=False) is None:
            self._announce(Reused(slot.pid, self._clock.wall() - slot.idle_since))
            return slot
        while True:
            slot = self._connect(retry)
            failure = self._open(slot, retry, scope, fresh=True)
            if failure is None:
                self._announce(Connected(slot.pid, retry.waited, retry.attempts))
                return slot
            self._pause(retry, failure)

    def _connect(self, retry: Retry) -> Slot:
        while True:
            outcome = self._attempt(retry)
            if isinstance(outcome, Slot):
                return outcome
            self._pause(retry, outcome)

    def _pause(self, retry: Retry, failure: Failure) -> None:
        delay = retry.delay(failure)
        if delay is None:
            raise retry.error(failure)
        self._announce(Retrying(delay, retry.attempts))
        self._clock.sleep(delay)

    def _attempt(self, retry: Retry) -> Slot | Failure:
        """Try each address once; of one host's addresses the next only if the network failed."""
        started = self._clock.monotonic()
        params = self._parameters()
        outcome = self._try_addresses(resolve(params, os.environ, self._clock.dice), params, retry)
        retry.note(self._clock.monotonic() - started)
        return outcome

    def _try_addresses(self, addresses: list[Address] | Refusal, params: ConnParams, retry: Retry) -> Slot | Failure:
        if isinstance(addresses, Refusal):
            return self._understand(addresses, retry)
        failures: dict[int, Failure] = {}  # by host
        for position, address in enumerate(addresses):
            if address.host in failures and failures[address.host].kind is not FailureKind.NETWORK:
                continue
            deadline = self._attempt_deadline(retry, params, len(addresses) - position)
            result = drive(attempt(address, deadline, self._traces()))
            if not isinstance(result, Refusal):
                return self._adopt(result)
            failures[address.host] = self._understand(result, retry)
            if not failures[address.host].kind.retryable:
                break
        return most_telling(failures.values())

    def _open(self, slot: Slot, retry: Retry, scope: Scope, *, fresh: bool) -> Failure | None:
        """Send the open exchange; return how the connection turned out dead, and then nothing of the user's has run."""
        message = self._open_message(slot, scope.deadline, scope.isolation_level, scope.read_only)
        answers = Answers()
        try:
            if message:
                run(slot.conn, message, self._open_deadline(retry, fresh), answers)
        except OperationalError as error:
            self._lose(slot, "open")
            if isinstance(error, ExchangeTimeout):
                self._condemn("a connection as old as this one lost its server in silence")
            return self._understand_loss(answers.error or error)
        except BaseException:
            self._drop(slot, "interrupted")
            raise
        if answers.error is not None and slot.conn.pgconn.status == ConnStatus.BAD:
            self._lose(slot, "open")
            return self._understand_loss(answers.error)
        if answers.error is not None:
            self._drop(slot, "the open exchange failed")
            raise answers.error
        self._read_open(slot, answers)
        return None

    # Release: end the transaction, reset the session, see to room

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

    def _clean_idle(self) -> CleanReport:
        self._check_process()
        slot = self._slots.take_idle()
        if slot is None:
            return CleanReport("closed", "no connection is open")
        if not self._is_usable(slot):
            self._slots.give_back(None)
            return CleanReport("closed", "the idle connection was dead or too old")
        report, _ = self._conclude(slot, Scope(self, self._deadline(0), None, None))
        return report

    def _conclude(self, slot: Slot, scope: Scope) -> tuple[CleanReport, Exception | None]:
        """Bring the connection of an ended request home, or close it; return what was done and what to raise."""
        answers, report, ending = Answers(), CleanReport("closed", "interrupted"), Ending.DISCARD
        started = self._clock.monotonic()
        try:
            ending = self._ending(slot, scope)
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
            self._announce(RolledBack(slot.pid, ending.value))
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

    def _reclaim(self) -> None:
        """Close the connections of requests that were begun by hand and collected before they ended."""
        while self._forgotten:
            self._drop(self._forgotten.popleft(), "its request was never ended")
            self._slots.give_back(None)

    def _condemn(self, reason: str) -> None:
        for slot in self._slots.condemn():
            self._drop(slot, reason)

    def _abort(self, scope: Scope) -> None:
        self._current.set(None)
        scope.fail()
        self._end(scope)
