"""How a request comes to its connection: wait in line, look at what is there, connect if need be, open."""

from __future__ import annotations

import os
import threading

from psycopg import OperationalError
from psycopg.pq import ConnStatus

from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.connect import Address, Refusal, attempt, resolve
from serverless_pg_kit.conninfo import ConnParams
from serverless_pg_kit.decisions.classify import Failure, FailureKind, most_telling
from serverless_pg_kit.errors import AcquireTimeout
from serverless_pg_kit.events import Connected, Retrying, Reused
from serverless_pg_kit.exchange import Answers, ExchangeTimeout, run
from serverless_pg_kit.retry import Retry
from serverless_pg_kit.scope import Scope
from serverless_pg_kit.slots import Slot, Waiter
from serverless_pg_kit.waiting import drive


class Acquiring(EngineBase):
    """The part of the sync engine that acquires."""

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
            result = drive(attempt(address, deadline, self._tracing.next()))
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

    def _reclaim(self) -> None:
        """Close the connections of requests that were begun by hand and collected before they ended."""
        while self._forgotten:
            self._drop(self._forgotten.popleft(), "its request was never ended")
            self._slots.give_back(None)

    def _condemn(self, reason: str) -> None:
        for slot in self._slots.condemn():
            self._drop(slot, reason)
