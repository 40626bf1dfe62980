"""What both shells share: everything an engine does that waits for nothing."""

from __future__ import annotations

import os
import weakref
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

from psycopg import Error, sql
from psycopg.pq import TransactionStatus
from psycopg.pq import abc as pq_abc

from serverless_pg_kit.clock import Clock
from serverless_pg_kit.commit import ending_problem
from serverless_pg_kit.connect import Refusal
from serverless_pg_kit.conninfo import ConnParams, complete, parameter
from serverless_pg_kit.decisions.backoff import Backoff
from serverless_pg_kit.decisions.census import Census, census_interval, read_census
from serverless_pg_kit.decisions.classify import Failure, FailureKind, classify
from serverless_pg_kit.decisions.deadline import (
    Deadline,
    attempt_seconds,
    deadline_after,
    open_seconds,
    server_timeouts,
)
from serverless_pg_kit.decisions.ending import Ending, choose_ending, rollback_reason
from serverless_pg_kit.errors import SettingsError
from serverless_pg_kit.events import (
    Announcer,
    Closed,
    Counted,
    Expired,
    Lost,
    MaintenanceFailed,
    PoolerDetected,
    Refused,
    Stats,
)
from serverless_pg_kit.exchange import Answers, is_alive, is_busy
from serverless_pg_kit.retry import Retry
from serverless_pg_kit.scope import Scope
from serverless_pg_kit.session import Baseline, transaction_mode
from serverless_pg_kit.settings import DEFAULT_FLEET, LONGEST_NAME, Settings
from serverless_pg_kit.slots import Slot, Slots
from serverless_pg_kit.sqlstate import TraceRation

CLOSE_SECONDS = 1.0
"""Least time for the end of a request, even past its deadline: a COMMIT that is not waited for is one unknown."""


class Closing(NamedTuple):
    """A close exchange: its message, how many commits it makes, and whether it ends with a census."""

    message: str
    commits: int
    census: bool


class EngineBase:
    """Settings, slots and announcements of an engine, and the parts of its work that do not wait."""

    def __init__(self, settings: Settings | None = None, /, **names: Any) -> None:
        if settings is not None and not isinstance(settings, Settings):
            raise TypeError(
                f"pass Settings or single settings, as in Engine(conninfo=...), not {type(settings).__name__}"
            )
        if settings is not None and names:
            raise TypeError("pass a Settings object or single settings, not both")
        self.settings: Settings = Settings.from_env(**names) if settings is None else settings
        self.settings.parameters(os.environ)  # so that a bad DATABASE_URL is told here and not in the first request
        self._clock = Clock()
        self._announce = Announcer(self.settings.listeners())
        self._slots = Slots(self.settings.max_size)
        self._tracing = TraceRation(always=any(rule.codes for rule in self.settings.connect_rules))
        self._told: set[str] = set()
        self._forgotten: deque[Slot] = deque()  # of requests that were collected before they ended
        self._finalizer = weakref.finalize(self, _close_idle, self._slots)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._slots.taken} in use, {self._slots.idle} idle, {self.settings!r}>"

    @property
    def stats(self) -> Stats:
        """What happened in this process since the engine was made: a snapshot of counts."""
        taken, idle = self._slots.taken, self._slots.idle
        return self._announce.stats(open=taken + idle, in_use=taken)

    def _check_process(self) -> None:
        """Start anew in a forked child."""
        if self._slots.process != os.getpid():
            while self._forgotten:
                self._slots.abandon(self._forgotten.popleft())
            self._slots.start_anew()
            self._announce.start_anew()

    def _deadline(self, seconds: float | None) -> Deadline:
        return deadline_after(seconds, self._clock.monotonic)

    def _retry(self, request_deadline: Deadline) -> Retry:
        backoff = Backoff(self.settings.backoff_base, self.settings.backoff_cap, self.settings.max_retries)
        deadline = request_deadline.within(self.settings.max_wait)
        return Retry(backoff, deadline, request_deadline, self._clock)

    def _parameters(self) -> ConnParams:
        params = self.settings.parameters(os.environ)
        fleet = self.settings.application_name
        if fleet == DEFAULT_FLEET:
            fleet = params.get("application_name", fleet)
        function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "")
        name = f"{fleet}:{function}" if function else fleet
        return complete(params, name[:LONGEST_NAME], os.environ)

    def _attempt_deadline(self, retry: Retry, params: ConnParams, addresses_left: int) -> Deadline:
        return retry.request_deadline.within(
            attempt_seconds(
                connect_timeout=int(parameter(params, os.environ, "connect_timeout") or 0),
                max_wait=self.settings.max_wait,
                remaining=retry.deadline.remaining(),
                addresses_left=addresses_left,
            )
        )

    def _understand(self, refusal: Refusal, retry: Retry) -> Failure:
        rules = self.settings.connect_rules
        failure = classify(refusal.message, refusal.codes, rules)
        self._tracing.learn(refusal.message, classify(refusal.message, (), rules).kind is not FailureKind.UNKNOWN)
        self._announce(Refused(failure.kind.value, failure.message, failure.code, retry.attempts + 1))
        return failure

    def _adopt(self, pgconn: pq_abc.PGconn) -> Slot:
        """Make a connection of `pgconn` and a slot around it. Closes it if `configure` raises."""
        conn = self.settings.connection_class(pgconn)
        try:
            conn.autocommit = self.settings.autocommit
            if self.settings.configure is not None:
                self.settings.configure(conn)
            if pgconn.transaction_status != TransactionStatus.IDLE:
                raise SettingsError("configure left a transaction open: commit it, or set autocommit first")
            baseline = Baseline.of(conn)
        except BaseException:
            conn.close()
            raise
        now = self._clock.wall()
        lifetime = self.settings.max_lifetime
        return Slot(
            conn,
            baseline,
            fleet=(pgconn.parameter_status(b"application_name") or b"").decode().partition(":")[0],
            born=now,
            expires=float("inf") if lifetime is None else now + lifetime * (1 - self._clock.dice() / 10),
            generation=self._slots.generation,
        )

    def _open_deadline(self, retry: Retry, is_fresh: bool) -> Deadline:
        return retry.request_deadline.within(open_seconds(is_fresh=is_fresh, remaining=retry.deadline.remaining()))

    def _is_usable(self, slot: Slot) -> bool:
        """Tell whether an idle connection may serve a request, as far as can be seen without a round trip."""
        now = self._clock.wall()
        if now >= slot.expires:
            self._announce(Expired(slot.pid, now - slot.born))
            self._drop(slot, "max_lifetime")
        elif not self._slots.is_current(slot):
            self._drop(slot, "a connection as old as this one was found dead")
        elif not is_alive(slot.conn.pgconn):
            self._lose(slot, "peek")
        elif slot.conn.pgconn.transaction_status != TransactionStatus.IDLE:
            self._drop(slot, "it was used after its request had ended")
        else:
            return True
        return False

    def _open_message(self, slot: Slot, deadline: Deadline, isolation_level: Any, read_only: bool | None) -> str:
        """Return the open exchange: empty for an autocommit connection that has nothing to change."""
        statements = self.settings.statements
        begin = (
            [] if slot.conn.autocommit else [statements.begin(transaction_mode(slot.conn, isolation_level, read_only))]
        )
        slot.timeouts = server_timeouts(deadline.remaining())
        if slot.direct is False or (not begin and slot.direct and not slot.timeouts.statement):
            return "; ".join(begin)
        return "; ".join([statements.open(slot.pid, slot.timeouts, slot.server_version), *begin])

    def _read_open(self, slot: Slot, answers: Answers) -> None:
        """Learn from the first open whether a pooler stands between."""
        if slot.direct is None and answers.rows:
            slot.direct = answers.rows[0][0] == str(slot.pid)
            if not slot.direct:
                slot.conn.prepare_threshold = None
                slot.baseline.attributes["prepare_threshold"] = None
                self._announce(PoolerDetected(slot.pid))

    def _ending(self, slot: Slot, scope: Scope) -> Ending:
        conn = slot.conn
        ending = choose_ending(
            TransactionStatus.ACTIVE if is_busy(conn) else TransactionStatus(conn.pgconn.transaction_status),
            wants_commit=scope._wants_commit,
            spoiled=scope._spoiled,
            tells_failure=scope._tells_failure,
            autocommit=conn.autocommit,
            closed_by_user=conn.closed and not conn.broken,
        )
        # A COMMIT that was never sent is not an unknown one.
        return Ending.LOST if ending is Ending.COMMIT and not is_alive(conn.pgconn) else ending

    def _rollback_reason(self, slot: Slot, scope: Scope) -> str:
        return rollback_reason(TransactionStatus(slot.conn.pgconn.transaction_status), spoiled=scope._spoiled)

    def _closing(self, slot: Slot, *, commit: bool) -> Closing:
        """Return the close exchange: an empty message if there is nothing to do."""
        statements, autocommit = self.settings.statements, slot.baseline.attributes["autocommit"]
        parts = [statements.commit()] if commit else []
        if slot.direct and self.settings.reset:
            parts.append(statements.reset(slot.pid, slot.server_version, keep_guard=autocommit))
        elif slot.direct:
            parts.append(statements.undo_open(slot.pid, slot.timeouts, slot.server_version, keep_guard=autocommit))
        parts = [part for part in parts if part]
        with_census = bool(slot.direct) and self._clock.wall() >= slot.census_at
        census = [statements.census(self._fleet(slot))] if with_census else []
        return Closing("; ".join(parts + census), len(parts), with_census)

    def _read_close(self, slot: Slot, closing: Closing, answers: Answers) -> Census | None:
        """Return the census in `answers`. Raises the error in them, unless it is the census alone that failed."""
        error = answers.error
        if error is not None and not (closing.census and answers.commits == closing.commits):
            raise error
        if error is not None:
            self._maintenance_failed("census", error)
            slot.census_at = self._clock.wall() + self.settings.census_ttl
            return None
        return self._read_census(slot, answers) if closing.census else None

    def _close_failed(self, ending: Ending, answers: Answers, error: Exception) -> None:
        """Announce that the end of a request failed, unless the caller hears of it anyway."""
        if ending_problem(ending, answers) is None:
            self._maintenance_failed("close", error)

    def _fleet(self, slot: Slot) -> str:
        return sql.Literal(slot.fleet).as_string(slot.conn)

    def _read_census(self, slot: Slot, answers: Answers) -> Census:
        """Return the census in `answers` and set when this connection takes its next one."""
        census = read_census([int(value or 0) for value in answers.rows[0]], self.settings.max_connections)
        interval = census_interval(self.settings.census_ttl, census.fleet_used, self._clock.dice())
        slot.census_at = self._clock.wall() + interval
        self._announce(Counted(census.used, census.fleet_used, census.room))
        return census

    def _understand_loss(self, error: Error) -> Failure:
        """Return the failure that a new connection is which was lost before its first statement.

        A pooler may refuse as late as this, in the answer to the first message.
        """
        text = str(error).strip() or "no reason given"
        failure = classify(text, [error.sqlstate] if error.sqlstate else [], self.settings.connect_rules)
        kind = failure.kind if failure.kind.retryable else FailureKind.NETWORK
        return failure._replace(kind=kind, message=f"lost before the first statement: {text}")

    def _close_deadline(self, deadline: Deadline) -> Deadline:
        return Deadline(max(deadline.at, self._clock.monotonic() + CLOSE_SECONDS), self._clock.monotonic)

    def _lose(self, slot: Slot, seen: str) -> None:
        """Drop a connection that turned out dead."""
        self._announce(Lost(slot.pid, seen, self._clock.wall() - slot.idle_since))
        self._drop(slot, f"dead ({seen})")

    def _drop(self, slot: Slot, reason: str) -> None:
        """Close a connection, whatever its state. Never raises."""
        self._announce(Closed(slot.pid, reason))
        with suppress(Exception):
            slot.conn.close()

    def _maintenance_failed(self, stage: str, error: object) -> None:
        """Announce the failure of the engine's own work, once for each stage and kind of error."""
        key = f"{stage} {type(error).__name__}"
        if key not in self._told:
            self._told.add(key)
            self._announce(MaintenanceFailed(stage, str(error).strip()))


def _close_idle(slots: Slots) -> None:
    """Close what is idle when the engine is collected or the interpreter exits, so that the server need not notice."""
    if slots.process == os.getpid():
        for slot in slots.condemn():
            slot.conn.close()
