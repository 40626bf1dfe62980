"""What needs no waiting when a request comes to its connection: shared by both shells."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from psycopg import Error
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.pq import abc as pq_abc

from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.connect import Refusal
from serverless_pg_kit.conninfo import (
    ConnParams,
    complete,
    identity,
    overlaid,
    parameter,
    raised_sslmode,
)
from serverless_pg_kit.decisions.backoff import Backoff
from serverless_pg_kit.decisions.classify import Failure, FailureKind, classify
from serverless_pg_kit.decisions.deadline import ATTEMPT_SECONDS, Deadline, attempt_seconds, open_seconds
from serverless_pg_kit.decisions.pooler import NO_TURN, NO_TURN_ADVICE, could_be_pid, pooler_of
from serverless_pg_kit.decisions.replay import is_fatal
from serverless_pg_kit.errors import AcquireTimeout, ServerlessPgError, SettingsError
from serverless_pg_kit.events import Connected, Down, GaveUp, PoolerDetected, Refused, Reused
from serverless_pg_kit.exchange import Answers, ExchangeTimeout
from serverless_pg_kit.opening import Opening, introduce, plan_open
from serverless_pg_kit.retry import Retry
from serverless_pg_kit.scope_base import WorkBase
from serverless_pg_kit.session import AnyConnection, Baseline, assign, transaction_mode
from serverless_pg_kit.settings import DEFAULT_FLEET, LONGEST_NAME
from serverless_pg_kit.slots import Slot
from serverless_pg_kit.target import Target

if TYPE_CHECKING:
    from serverless_pg_kit.provider import Answer

IDLE = int(TransactionStatus.IDLE)

RENEWAL_PAUSE = 5.0
"""Seconds, at least, between two times that rejected credentials are told to forget what they cached."""

DOWN_SECONDS = 0.5
"""Longest attempt on one address of a server that was down a moment ago."""


class AcquiringBase(EngineBase):
    """The part of acquiring that waits for nothing."""

    def _retry(self, scope: WorkBase, target: Target, started: float) -> Retry:
        """Return the record of an acquisition for `scope` that began at `started`."""
        backoff = self._backoff_for(target)
        return Retry(backoff, scope.deadline, self.settings.max_wait, self._clock, started, target, scope._tenant)

    def _backoff_for(self, target: Target) -> Backoff:
        return self._backoff._replace(max_retries=0) if target.history.is_down else self._backoff

    def _new_parameters(self, retry: Retry, answer: ConnParams | None) -> ConnParams:
        """Return what to connect with: the settings, under the `answer` of the credentials, under what the request
        names. Takes note of where that leads, and as whom."""
        params = self.settings.parameters(os.environ)
        if answer is not None:
            params = overlaid(params, raised_sslmode(params, answer, os.environ), os.environ)
            before, self._identity = self._identity, identity(answer)
            retry.identity = self._identity
            if self._identity != before:
                self._look_closer()
        if retry.tenant is not None:
            params = overlaid(params, retry.tenant.parameters(), os.environ)
        if self._targets.settle(retry.target, params):
            retry.backoff = self._backoff_for(retry.target)
        return complete(params, self._application_name(params), os.environ)

    def _application_name(self, params: ConnParams) -> str:
        fleet = self.settings.application_name
        if fleet == DEFAULT_FLEET:
            fleet = params.get("application_name", fleet)
        function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "")
        name = f"{fleet}:{function}" if function else fleet
        return name[:LONGEST_NAME]

    def _may_renew(self, retry: Retry, failure: Failure) -> bool:
        """Tell whether the credentials should be asked again after `failure`: once, if it was theirs that failed."""
        if failure.kind is not FailureKind.CREDENTIALS or self.settings.credentials is None or retry.is_renewed:
            return False
        return retry.tenant is None or "password" not in retry.tenant.parameters()

    def _invalidate(self) -> None:
        """Let the credentials forget what they cached, unless that was done a moment ago: a secret that stays wrong
        must not be fetched anew for every request."""
        pause = self._clock.wall() - self._invalidated_at
        if not 0 <= pause < RENEWAL_PAUSE:
            self._invalidated_at = self._clock.wall()
            from serverless_pg_kit.provider import invalidate

            invalidate(self.settings.credentials)

    def _asking_seconds(self, retry: Retry) -> float:
        """Return how long the credentials may take: an acquisition without time, one attempt, leaves some for it."""
        left = retry.deadline.remaining() if self.settings.max_wait else ATTEMPT_SECONDS
        return min(left, retry.request_deadline.remaining())

    def _check_answer(self, retry: Retry, answer: Answer, started: float, seconds: float) -> ConnParams:
        """Return the credentials' `answer`, asked for at `started`. Raises `AcquireTimeout` if there is none within
        `seconds`, and `SettingsError` if it is none that libpq takes."""
        took = self._clock.monotonic() - started
        if answer is None or took > seconds:
            late = AcquireTimeout(f"`credentials` had not answered after {took:.2f} s", waited=retry.waited)
            raise self._gave_up(late, retry)
        if isinstance(answer, str):
            raise self._gave_up(SettingsError(f"what `credentials` returned {answer}"), retry)
        retry.asked_at = self._clock.wall()
        return answer

    def _unresolved(self, params: ConnParams) -> Refusal:
        return Refusal(f'could not translate host name "{parameter(params, os.environ, "host")}": no answer in time')

    def _attempt_deadline(self, retry: Retry, params: ConnParams, addresses_left: int) -> Deadline:
        seconds = attempt_seconds(
            connect_timeout=int(parameter(params, os.environ, "connect_timeout") or 0),
            max_wait=self.settings.max_wait,
            remaining=retry.deadline.remaining(),
            addresses_left=addresses_left,
        )
        return retry.request_deadline.within(min(seconds, DOWN_SECONDS) if retry.target.history.is_down else seconds)

    def _give_up(self, retry: Retry, failure: Failure) -> ServerlessPgError:
        """Return the error that ends an acquisition; a server that is plainly down is not waited for again soon."""
        is_spent = retry.waited >= self.settings.max_wait / 2
        history = retry.target.history
        if failure.kind is FailureKind.NETWORK and is_spent and not history.is_down and self.settings.down_ttl:
            seconds = self.settings.down_ttl * (0.5 + self._clock.dice())
            history.note_down(seconds)
            self._announce(Down(seconds))
        return self._gave_up(retry.error(failure), retry)

    def _too_late(self, retry: Retry) -> ServerlessPgError:
        return self._gave_up(
            AcquireTimeout("the request's deadline was over before it needed a connection", waited=0.0), retry
        )

    def _no_turn(self, retry: Retry) -> ServerlessPgError:
        """Return the error of a request for which no connection of the process became free in time."""
        waited = retry.waited
        text = (
            f"all {self._slots.max_size} connections of this process were in use for {waited:.2f} s:"
            " raise max_size or max_wait, or end requests sooner"
        )
        return self._gave_up(AcquireTimeout(text, waited=waited), retry)

    def _no_pooled_turn(self, retry: Retry, failure: Failure) -> ServerlessPgError:
        """Return the error of a request for whose `failure` a pooler took all the time there was."""
        retry.note(retry.waited)
        return self._give_up(retry, failure)

    def _gave_up(self, error: ServerlessPgError, retry: Retry) -> ServerlessPgError:
        self._announce(GaveUp(type(error).__name__, retry.waited, retry.attempts))
        return error

    def _reused(self, slot: Slot, wall: float, started: float) -> Reused:
        slot.begun = self._clock.monotonic()
        return Reused(slot.pid, wall - slot.idle_since, slot.begun - started)

    def _announce_connected(self, slot: Slot, retry: Retry) -> None:
        slot.begun = self._clock.monotonic()
        slot.waited = slot.begun - retry.started
        with closed_if_interrupted(slot):
            self._announce(Connected(slot.pid, slot.waited, retry.attempts, retry.latest))

    def _understand(self, refusal: Refusal, retry: Retry) -> Failure:
        rules = self.settings.connect_rules
        failure = classify(refusal.message, refusal.codes, rules)
        self._tracing.learn(refusal.message, classify(refusal.message, (), rules).kind is not FailureKind.UNKNOWN)
        if failure.kind is FailureKind.CAPACITY:
            retry.target.history.note_refusal()
            self._look_closer()
        self._announce(Refused(failure.kind.value, failure.message, failure.code, retry.attempts + 1, retry.lap()))
        return failure

    def _connection(self, pgconn: pq_abc.PGconn) -> AnyConnection:
        """Make a connection of `pgconn`, before anybody has configured it."""
        conn = self._connection_class(pgconn)
        assign(conn, "autocommit", self.settings.autocommit)
        return conn

    def _slot(self, conn: AnyConnection, baseline: Baseline, retry: Retry) -> Slot:
        now = self._clock.wall()
        lifetime = self.settings.max_lifetime
        slot = Slot(
            conn,
            self._line_class(conn),
            baseline,
            fleet=(conn.pgconn.parameter_status(b"application_name") or b"").decode().partition(":")[0],
            target=retry.target,
            identity=retry.identity,
            born=now,
            expires=float("inf") if lifetime is None else now + lifetime * (1 - self._clock.dice() / 10),
            generation=self._slots.generation,
        )
        slot.waited = retry.waited
        self._open_slots.add(slot)
        conn.add_notice_handler(slot.hear)
        baseline.keep_notice_handler(slot.hear)
        pooler = pooler_of(self.settings.pooler, conn.pgconn.host.decode())
        if pooler is not None:
            self._leave_alone(slot, f"{pooler}, by its host name" if self.settings.pooler == "auto" else pooler)
        elif not could_be_pid(slot.pid):
            self._leave_alone(slot, "the pid at connect is no server's own")
        return slot

    def _leave_alone(self, slot: Slot, how: str) -> None:
        """Keep away from the session behind `slot`: it is a pooler's, and may be anybody's next."""
        slot.direct = False
        slot.conn.prepare_threshold = None
        slot.baseline.stop_preparing()
        self._announce(PoolerDetected(slot.pid, how))

    def _decline(self, slot: Slot | None) -> None:
        """Give back what was granted to a request that does not want it any more."""
        if not self._slots.give_back(slot) and slot is not None:
            self._drop(slot, "the engine was closed, or a connection as old as this one found dead")

    def _fresh_open_deadline(self, retry: Retry) -> Deadline:
        return retry.request_deadline.within(open_seconds(is_fresh=True, remaining=retry.deadline.remaining()))

    def _is_usable(self, slot: Slot, target: Target, now: float) -> bool:
        """Tell whether an idle connection may serve a request for `target`, as far as can be seen without a round trip.

        One that may not is closed. `now` is the time of day.
        """
        is_current = now < slot.best_before and slot.generation == self._slots.generation
        is_ours = slot.target is target and slot.identity == self._identity
        if is_current and is_ours and slot.line.is_alive() and slot.conn.pgconn.transaction_status == IDLE:
            return True
        if slot.target is not target:
            self._drop(slot, "a request for another conninfo needed its place")
        elif now >= slot.expires:
            self._expire(slot, "max_lifetime", now - slot.born)
        elif now >= slot.best_before:
            self._expire(slot, "lease", now - slot.idle_since)
        elif not self._slots.is_current(slot):
            self._drop(slot, "a connection as old as this one was found dead")
        elif slot.conn.pgconn.status == ConnStatus.BAD:
            self._lose(slot, "peek")
        elif not is_ours:
            self._drop(slot, "the credentials are others now")
        else:
            self._drop(slot, "it was used after its request had ended")
        return False

    def _usual_opening(self, slot: Slot, scope: WorkBase) -> Opening | None:
        """Return the open exchange of an ordinary request, ``None`` if `scope` or the connection is out of that."""
        routine = slot.routine
        if routine is None or scope.isolation_level is not None or scope.read_only is not None or not scope.transaction:
            return None
        return routine.open(scope.until - self._clock.monotonic())

    def _opening(self, slot: Slot, scope: WorkBase) -> Opening:
        conn, settings, mode = slot.conn, self.settings, slot.mode
        if scope.isolation_level is not None or scope.read_only is not None:
            mode = transaction_mode(conn, scope.isolation_level, scope.read_only)
        begins = scope.transaction and not slot.is_autocommit
        is_due = slot.direct is None and self._may_census(slot) and not slot.history.put_census_off(slot.waited)
        return plan_open(
            slot,
            settings.statements,
            mode if begins else None,
            scope.until - self._clock.monotonic(),
            reset=settings.reset,
            ping=not begins and slot.lent > 0 and self._idle_seconds(slot) >= settings.check_after,
            session=settings.session if slot.direct is None else {},
            census=self._census_message(slot) if is_due else "",
        )

    def _introduce(self, slot: Slot, opening: Opening, answers: Answers) -> None:
        """Learn from the answer to the first open whether a pooler stands between, and the census."""
        tables = answers.tables
        if not tables or not tables[-1]:
            return
        introduce(slot, tables[-1][0])
        with closed_if_interrupted(slot):
            if not slot.direct:
                self._leave_alone(slot, "the server's pid is another one than at connect")
            elif opening.census and len(tables) > 1 and tables[0]:
                slot.census = self._read_census(slot, tables[0][0])

    def _can_do_without(self, slot: Slot, opening: Opening, answers: Answers) -> bool:
        """Tell whether the open can be sent again without what failed in it: a census, or a prepared statement."""
        if opening.census and answers.error is not None and not answers.tables:  # the census comes first
            self._census_failed(slot, answers.error)
            return True
        return self._lacks_prepared(slot, answers)

    def _understand_loss(self, slot: Slot, error: Error) -> Failure:
        """Return the failure that a new connection is which was lost before its first statement.

        A pooler may refuse as late as this, in the answer to the first message; or it has no turn for it. An error that
        is none of the connection's may have come before the loss: it decides nothing.
        """
        if isinstance(error, ExchangeTimeout) and slot.direct is False:
            return Failure(FailureKind.POOLER_FULL, NO_TURN, advice=NO_TURN_ADVICE)
        text = str(error).strip() or "no reason given"
        failure = classify(text, [error.sqlstate] if error.sqlstate else [], self.settings.connect_rules)
        is_said = failure.kind.retryable or is_fatal(error)
        kind = failure.kind if is_said else FailureKind.NETWORK
        return failure._replace(kind=kind, message=f"lost before the first statement: {text}")


@contextmanager
def closed_if_interrupted(slot: Slot) -> Iterator[None]:
    """Close the new connection of `slot`, which nobody else knows yet, if the block is interrupted."""
    try:
        yield
    except BaseException:
        slot.line.close()
        raise
