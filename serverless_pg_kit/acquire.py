# Written by .ci/make_sync.py from aio/acquire.py: edit that, and run it.
"""How a request comes to its connection: wait in line, look at what is there, connect if need be, open."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from psycopg import Connection, OperationalError
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.pq import abc as pq_abc

from serverless_pg_kit.acquire_base import AcquiringBase
from serverless_pg_kit.connect import CERTIFICATE_REFUSED, Address, Refusal, attempt, resolve
from serverless_pg_kit.conninfo import ConnParams
from serverless_pg_kit.decisions.classify import Failure, FailureKind, most_telling
from serverless_pg_kit.decisions.deadline import Deadline, open_seconds
from serverless_pg_kit.errors import ConnectRejected, ServerlessPgError, SettingsError
from serverless_pg_kit.events import CredentialsRefreshed, Paused, Retrying, Reused, Waited
from serverless_pg_kit.exchange import Answers, ExchangeTimeout
from serverless_pg_kit.history import NEVER
from serverless_pg_kit.line import Line
from serverless_pg_kit.opening import Opening
from serverless_pg_kit.retry import Retry
from serverless_pg_kit.scope import Work
from serverless_pg_kit.session import AnyConnection, Baseline, counted_waits
from serverless_pg_kit.slots import SESSION_USER, Slot, Waiter
from serverless_pg_kit.waiting import Bell, asked, completed, drive, elsewhere, pause
from serverless_pg_kit.watch import PauseWatch, Watch

EXPLAIN_SECONDS = 1.0
"""Longest time to find out why a certificate was refused."""

LEAST_PATIENCE = 0.25
"""Seconds of silence that say something about the server: a request with less time left says only that it was late."""


class Acquiring(AcquiringBase):
    """The part of the engine that acquires."""

    _connection_class = Connection
    _line_class = Line

    def _acquire(self, scope: Work) -> Slot:
        started, wall = self._clock.monotonic(), self._clock.wall()
        target = self._begin_work(scope, started, wall)
        if scope.until <= started:
            raise self._too_late(self._retry(scope, target, started))
        turn = started
        granted, slot = self._slots.take(target)
        if not granted:
            slot = self._wait_in_line(self._retry(scope, target, started))
            turn, wall = self._clock.monotonic(), self._clock.wall()
        try:
            if slot is not None and self._is_usable(slot, target, wall) and self._open_idle(slot, scope, started, turn):
                slot.begun = started
                self._announce.often(Reused, self._reused, slot, wall, started)
            else:
                slot = self._open_fresh(scope, self._retry(scope, target, started))
        except BaseException:
            if slot is not None:
                slot.line.close()
            self._slots.give_back(None)
            raise
        slot.steady_until = NEVER  # until its end, too, has found nothing out of the ordinary
        self._watch(slot, self._clock.monotonic(), scope.until)
        if scope.transaction == "ahead" and not slot.conn.autocommit:
            from serverless_pg_kit.ahead import Ahead

            slot.ahead = Ahead(slot, scope.deadline)
        return slot

    def _watch(self, slot: Slot, begun: float, until: float) -> None:
        """Watch the request that got `slot`, if it has a deadline, or there is something to note."""
        if slot.hook is not None:  # from the request before
            self._end_watch(slot)
        notes_pauses = self.settings.hold_warning is not None
        is_watched = until < math.inf or notes_pauses
        if is_watched:
            slot.watch = slot.watch or (PauseWatch(slot) if notes_pauses else Watch(slot))
            slot.hook = slot.watch.begin(begun, until, self._clock.monotonic, slot.direct)

    def _wait_in_line(self, retry: Retry) -> Slot | None:
        bell = Bell()
        waiter = Waiter(retry.target, bell.ring)
        try:
            if not self._slots.ask(waiter) and bell.wait(retry.deadline.remaining()):
                self._announce(Waited(retry.waited))
        except BaseException:
            if not self._slots.withdraw(waiter):
                self._decline(waiter.slot)
            raise
        if not waiter.granted and self._slots.withdraw(waiter):
            raise self._no_turn(retry)
        return waiter.slot

    def _open_idle(self, slot: Slot, scope: Work, started: float, turn: float) -> bool:
        is_queued = slot.direct is False  # a pooler lets BEGIN wait for one of its connections: that is no silence
        # However long the request has waited in line before its turn: that tells nothing about the connection.
        began = started if is_queued else turn
        left = min(scope.until - began, self.settings.max_wait)
        until = min(scope.until, began + open_seconds(is_fresh=is_queued, remaining=left))
        failure = self._open(slot, scope, Deadline(until, self._clock.monotonic), until - began)
        if failure is not None and is_queued and self._clock.monotonic() >= until:
            raise self._no_pooled_turn(self._retry(scope, slot.target, started), failure)
        return failure is None

    def _open_fresh(self, scope: Work, retry: Retry) -> Slot:
        self._let_others_pass(retry)
        while True:
            slot = self._connect(retry)
            deadline = self._fresh_open_deadline(retry)
            failure = self._open(slot, scope, deadline, deadline.remaining())
            if failure is None:
                self._announce_connected(slot, retry)
                return slot
            self._pause(retry, failure)

    def _connect(self, retry: Retry) -> Slot:
        while True:
            outcome = self._attempt(retry)
            if isinstance(outcome, Slot):
                return outcome
            self._pause(retry, outcome)

    def _let_others_pass(self, retry: Retry) -> None:
        delay = retry.target.history.first_delay(retry.deadline.remaining())
        if delay > 0:
            self._announce(Paused(delay))
            pause(self._clock, delay)

    def _pause(self, retry: Retry, failure: Failure) -> None:
        if self._renew(retry, failure):
            return
        delay, said = retry.delay(failure), retry.last_word(failure)
        if delay is None:
            raise self._give_up(retry, said)
        self._announce(Retrying(delay, retry.attempts))
        pause(self._clock, delay)

    def _attempt(self, retry: Retry) -> Slot | Failure:
        """Try each address once; of one host's addresses the next only if the network failed."""
        started = self._clock.monotonic()
        retry.lap()
        params = self._parameters(retry)
        outcome = self._try_addresses(self._resolve(params, retry), params, retry)
        seconds = self._clock.monotonic() - started
        retry.note(seconds)
        if isinstance(outcome, Slot):
            outcome.history.note_connect(seconds)
        return outcome

    def _parameters(self, retry: Retry) -> ConnParams:
        """Return what to connect with; the credentials are asked for it, if there are any."""
        credentials = self.settings.credentials
        if credentials is None:
            return self._new_parameters(retry, None)
        if retry.params is None or retry.is_stale:
            retry.params = self._new_parameters(retry, self._ask(retry, credentials))
        return retry.params

    def _renew(self, retry: Retry, failure: Failure) -> bool:
        """Ask the credentials again after they were rejected, once; tell whether they say something else now."""
        if not self._may_renew(retry, failure):
            return False
        rejected, started = retry.params, self._clock.monotonic()
        retry.params, retry.is_renewed = None, True
        self._invalidate()
        has_changed = self._parameters(retry) != rejected
        self._announce(CredentialsRefreshed(has_changed, self._clock.monotonic() - started))
        return has_changed

    def _ask(self, retry: Retry, credentials: Callable[[], object]) -> ConnParams:
        """Return what the `credentials` say. Raises `ConnectRejected` for an exception in them; its own text may hold a
        secret and is not shown."""
        from serverless_pg_kit.provider import failure_of, read_answer

        started, seconds = self._clock.monotonic(), self._asking_seconds(retry)
        hidden = self._current.set(None)  # they would wait for the very connection that they are asked for
        try:
            answer = read_answer(asked(seconds, "credentials", credentials))
        except ServerlessPgError as error:
            raise self._gave_up(error, retry)  # noqa: B904 - it is the same one
        except Exception as error:
            problem = failure_of("credentials", error)
        else:
            return self._check_answer(retry, answer, started, seconds)
        finally:
            self._current.reset(hidden)
        raise self._gave_up(ConnectRejected(problem, reason=problem), retry)

    def _resolve(self, params: ConnParams, retry: Retry) -> list[Address] | Refusal:
        seconds = self._attempt_deadline(retry, params, 1).remaining()
        found = elsewhere(seconds, resolve, params, os.environ, self._clock.dice)
        return self._unresolved(params) if found is None else found

    def _try_addresses(self, addresses: list[Address] | Refusal, params: ConnParams, retry: Retry) -> Slot | Failure:
        if isinstance(addresses, Refusal):
            return self._understand(addresses, retry)
        failures: dict[int, Failure] = {}  # by host
        for position, address in enumerate(addresses):
            if address.host in failures and failures[address.host].kind is not FailureKind.NETWORK:
                continue
            deadline = self._attempt_deadline(retry, params, len(addresses) - position)
            result = drive(attempt(address, deadline, self._tracing.next()))
            if not isinstance(result, Refusal):
                return self._adopt(result, retry)
            if CERTIFICATE_REFUSED in result.message:
                result = self._explained(result, address, deadline)
            failures[address.host] = self._understand(result, retry)
            if not failures[address.host].kind.retryable:
                break
        return most_telling(failures.values())

    def _explained(self, refusal: Refusal, address: Address, deadline: Deadline) -> Refusal:
        """Return the `refusal` of a certificate with its reason, if that can be found out."""
        from serverless_pg_kit.certificate import explained  # needed by few, and a cold start would pay for it

        seconds = min(deadline.remaining(), EXPLAIN_SECONDS)
        message = elsewhere(seconds, explained, refusal.message, address.params, os.environ, seconds)
        return refusal._replace(message=message or refusal.message)

    def _adopt(self, pgconn: pq_abc.PGconn, retry: Retry) -> Slot:
        """Make a connection of `pgconn` and a slot around it. Closes it if ``configure`` raises."""
        conn: Any = self._connection(pgconn)
        try:
            user, unconfigured = pgconn.parameter_status(SESSION_USER), Baseline(conn)
            talks = self._configure(conn)
            slot = self._slot(conn, Baseline(conn, unconfigured), retry)
        except BaseException:
            Line(conn).close()
            raise
        slot.configures_session, slot.user = talks, user
        return slot

    def _configure(self, conn: AnyConnection) -> bool:
        """Let the user configure `conn`; tell whether that talked to the server."""
        configure: Callable[[Any], object] | None = self.settings.configure
        if configure is None:
            return False
        hidden = self._current.set(None)  # it would wait for the very connection that it configures
        try:
            with counted_waits(conn) as waits:
                completed(configure(conn))
        finally:
            self._current.reset(hidden)
        if conn.pgconn.transaction_status != TransactionStatus.IDLE:
            raise SettingsError("configure left a transaction open: commit it, or set autocommit first")
        return bool(waits)

    def _reconfigure(self, slot: Slot) -> None:
        """Let the user configure the connection of `slot` again, from where it was the first time: handlers and
        adapters, which no reset of the session undoes, would be there twice otherwise."""
        slot.baseline.restore_unconfigured(slot.conn)
        self._configure(slot.conn)

    def _open(self, slot: Slot, scope: Work, deadline: Deadline, patience: float) -> Failure | None:
        """Send the open exchange; return how the connection turned out dead, and then nothing of the user's has run.

        `patience` is how many seconds it has.
        """
        answers = Answers()
        try:
            opening = self._usual_opening(slot, scope) or self._opening(slot, scope)
            if opening.message:
                slot.line.run(opening.message, deadline, answers)
            if answers.failed is not None:
                answers = self._open_again(slot, scope, opening, answers, deadline)
        except OperationalError as lost:
            return self._open_lost(slot, answers, lost, patience)
        except BaseException:
            self._drop(slot, "interrupted")
            raise
        if answers.failed is not None:
            return self._open_failed(slot, answers)
        if slot.direct is None:
            self._introduce(slot, opening, answers)
        return None

    def _open_again(self, slot: Slot, scope: Work, opening: Opening, answers: Answers, deadline: Deadline) -> Answers:
        """Send the open without what failed in it, if it can do without; otherwise return the failed `answers`."""
        if slot.conn.pgconn.status == ConnStatus.BAD or not self._can_do_without(slot, opening, answers):
            return answers
        slot.line.run(b"ROLLBACK", deadline)
        again: Answers = slot.line.run(self._opening(slot, scope).message, deadline)
        return again

    def _open_lost(self, slot: Slot, answers: Answers, lost: OperationalError, patience: float) -> Failure:
        """Return the failure of a connection that was `lost` in its open exchange, which had `patience` seconds."""
        slot.farewell = slot.farewell or lost.sqlstate or getattr(answers.error, "sqlstate", None)
        self._lose(slot, "open")
        if isinstance(lost, ExchangeTimeout) and patience >= LEAST_PATIENCE and slot.direct is not False:
            self._condemn("a connection as old as this one lost its server in silence", slot.history)
        return self._understand_loss(slot, answers.error or lost)

    def _open_failed(self, slot: Slot, answers: Answers) -> Failure:
        """Return the failure of a connection that died in its open exchange. Raises the server's error if it lives."""
        error = answers.error
        if error is None or slot.conn.pgconn.status != ConnStatus.BAD:
            self._drop(slot, "the open exchange failed")
            raise error or OperationalError("the open exchange failed")
        slot.farewell = slot.farewell or error.sqlstate
        self._lose(slot, "open")
        return self._understand_loss(slot, error)
