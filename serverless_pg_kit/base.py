"""What both shells share: everything an engine does that waits for nothing."""

from __future__ import annotations

import os
import weakref
from collections import deque
from contextlib import suppress
from typing import Any

from psycopg import Connection, Error, sql
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.pq import abc as pq_abc

from serverless_pg_kit import processes
from serverless_pg_kit.clock import Clock
from serverless_pg_kit.closing import Closing, plan_close
from serverless_pg_kit.commit import ending_problem
from serverless_pg_kit.connect import Refusal
from serverless_pg_kit.conninfo import ConnParams, complete, parameter
from serverless_pg_kit.decisions.backoff import Backoff
from serverless_pg_kit.decisions.census import Census, read_census
from serverless_pg_kit.decisions.classify import Failure, FailureKind, classify
from serverless_pg_kit.decisions.cleaning import Reap, Strategy, plan_reap
from serverless_pg_kit.decisions.deadline import Deadline, attempt_seconds, deadline_after, open_seconds
from serverless_pg_kit.decisions.ending import Ending, choose_ending, rollback_reason
from serverless_pg_kit.decisions.lease import Lease
from serverless_pg_kit.errors import ServerlessPgError, SettingsError
from serverless_pg_kit.events import (
    Announcer,
    Closed,
    Counted,
    Expired,
    HeldUnused,
    Leased,
    Lost,
    MaintenanceFailed,
    PoolerDetected,
    Reaped,
    Refused,
    RolledBack,
    Stats,
    Thawed,
)
from serverless_pg_kit.exchange import Answers, is_alive, is_busy
from serverless_pg_kit.history import History
from serverless_pg_kit.opening import LEASES_VERSION, Opening, introduce, plan_open
from serverless_pg_kit.retry import Retry
from serverless_pg_kit.scope import Scope
from serverless_pg_kit.session import Baseline, transaction_mode
from serverless_pg_kit.settings import DEFAULT_FLEET, LONGEST_NAME, Settings
from serverless_pg_kit.slots import Slot, Slots
from serverless_pg_kit.sqlstate import TraceRation
from serverless_pg_kit.watch import Watch, counted_waits

CLOSE_SECONDS = 1.0
"""Least time for the end of a request, even past its deadline: a COMMIT that is not waited for is one unknown."""


CENSUS_PAUSE = 1.0
"""Seconds, at least, before a census that the server refused is tried again."""

DOWN_SECONDS = 0.5
"""Longest attempt on one address of a server that was down a moment ago."""

THAW_SECONDS = 1.0
"""By how much the time of day has to outrun the process's own clock for a thaw: less is the clock being set."""

UNKNOWN_STATEMENT = "26000"
"""SQLSTATE of a prepared statement that does not exist."""

IDLE = int(TransactionStatus.IDLE)

LEASE_OVER = "57P05"
"""SQLSTATE of a session that was ended by ``idle_session_timeout``."""


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
        self._backoff = Backoff(self.settings.backoff_base, self.settings.backoff_cap, self.settings.max_retries)
        self._told: set[str] = set()
        self._forgotten: deque[Slot] = deque()  # of requests that were collected before they ended
        self._start()
        self._finalizer = weakref.finalize(self, _close_idle, self._slots)

    def _start(self) -> None:
        self._history = History(self._clock, self.settings)
        self._census_refused_until = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._slots.taken} in use, {self._slots.idle} idle, {self.settings!r}>"

    @property
    def stats(self) -> Stats:
        """What happened in this process since the engine was made: a snapshot of counts."""
        taken, idle = self._slots.taken, self._slots.idle
        return self._announce.stats(open=taken + idle, in_use=taken)

    def _check_process(self) -> None:
        if self._slots.process != processes.generation:
            self._start_anew()

    def _start_anew(self) -> None:
        """Forget all that is the parent's, in a forked child."""
        while self._forgotten:
            self._slots.abandon(self._forgotten.popleft())
        self._slots.start_anew()
        self._announce.start_anew()
        self._start()

    def _deadline(self, seconds: float | None) -> Deadline:
        return deadline_after(seconds, self._clock.monotonic)

    def _retry(self, scope: Scope, started: float) -> Retry:
        """Return the record of an acquisition for `scope` that began at `started`."""
        backoff = self._backoff._replace(max_retries=0) if self._history.is_down else self._backoff
        return Retry(backoff, scope.deadline, self.settings.max_wait, self._clock, started)

    def _parameters(self) -> ConnParams:
        params = self.settings.parameters(os.environ)
        fleet = self.settings.application_name
        if fleet == DEFAULT_FLEET:
            fleet = params.get("application_name", fleet)
        function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "")
        name = f"{fleet}:{function}" if function else fleet
        return complete(params, name[:LONGEST_NAME], os.environ)

    def _attempt_deadline(self, retry: Retry, params: ConnParams, addresses_left: int) -> Deadline:
        seconds = attempt_seconds(
            connect_timeout=int(parameter(params, os.environ, "connect_timeout") or 0),
            max_wait=self.settings.max_wait,
            remaining=retry.deadline.remaining(),
            addresses_left=addresses_left,
        )
        return retry.request_deadline.within(min(seconds, DOWN_SECONDS) if self._history.is_down else seconds)

    def _give_up(self, retry: Retry, failure: Failure) -> ServerlessPgError:
        """Return the error that ends an acquisition; a server that is plainly down is not waited for again soon."""
        is_spent = retry.waited >= self.settings.max_wait / 2
        if failure.kind is FailureKind.NETWORK and is_spent and not self._history.is_down:
            self._history.note_down(self.settings.down_ttl * (0.5 + self._clock.dice()))
        return retry.error(failure)

    def _understand(self, refusal: Refusal, retry: Retry) -> Failure:
        rules = self.settings.connect_rules
        failure = classify(refusal.message, refusal.codes, rules)
        self._tracing.learn(refusal.message, classify(refusal.message, (), rules).kind is not FailureKind.UNKNOWN)
        if failure.kind is FailureKind.CAPACITY:
            self._history.note_refusal()
        self._announce(Refused(failure.kind.value, failure.message, failure.code, retry.attempts + 1))
        return failure

    def _adopt(self, pgconn: pq_abc.PGconn) -> Slot:
        """Make a connection of `pgconn` and a slot around it. Closes it if `configure` raises."""
        conn = self.settings.connection_class(pgconn)
        try:
            conn.autocommit = self.settings.autocommit
            talks = self._configure(conn)
            slot = self._slot(conn, Baseline(conn))
        except BaseException:
            conn.close()
            raise
        slot.configures_session = talks
        return slot

    def _slot(self, conn: Connection[Any], baseline: Baseline) -> Slot:
        now = self._clock.wall()
        lifetime = self.settings.max_lifetime
        slot = Slot(
            conn,
            baseline,
            fleet=(conn.pgconn.parameter_status(b"application_name") or b"").decode().partition(":")[0],
            born=now,
            expires=float("inf") if lifetime is None else now + lifetime * (1 - self._clock.dice() / 10),
            generation=self._slots.generation,
        )
        conn.add_notice_handler(slot.hear)
        baseline.keep_notice_handler(slot.hear)
        return slot

    def _configure(self, conn: Connection[Any]) -> bool:
        """Let the user configure `conn`; tell whether that talked to the server."""
        if self.settings.configure is None:
            return False
        with counted_waits(conn) as waits:
            self.settings.configure(conn)
        if conn.pgconn.transaction_status != TransactionStatus.IDLE:
            raise SettingsError("configure left a transaction open: commit it, or set autocommit first")
        return bool(waits)

    def _idle_open_deadline(self, deadline: Deadline, started: float) -> Deadline:
        left = min(deadline.at - started, self.settings.max_wait)
        return Deadline(min(deadline.at, started + open_seconds(is_fresh=False, remaining=left)), deadline.now)

    def _fresh_open_deadline(self, retry: Retry) -> Deadline:
        return retry.request_deadline.within(open_seconds(is_fresh=True, remaining=retry.deadline.remaining()))

    def _begin_work(self) -> None:
        """Look at what happened since the last request: a fork, a thaw, requests that nobody ended."""
        if self._slots.process != processes.generation:
            self._start_anew()
        if self._forgotten:
            self._reclaim()
        frozen = self._history.note_request()
        if frozen > THAW_SECONDS:
            self._announce(Thawed(frozen))

    def _reclaim(self) -> None:
        """Close the connections of requests that were begun by hand and collected before they ended."""
        while self._forgotten:
            self._drop(self._forgotten.popleft(), "its request was never ended")
            self._slots.give_back(None)

    def _condemn(self, reason: str) -> None:
        for slot in self._slots.condemn():
            self._drop(slot, reason)

    def _idle_seconds(self, slot: Slot) -> float:
        return max(0.0, self._clock.wall() - slot.idle_since)

    def _is_usable(self, slot: Slot) -> bool:
        """Tell whether an idle connection may serve a request, as far as can be seen without a round trip.

        One that may not is closed.
        """
        now, pgconn = self._clock.wall(), slot.conn.pgconn
        is_current = now < slot.best_before and slot.generation == self._slots.generation
        if is_current and is_alive(pgconn) and pgconn.transaction_status == IDLE:
            return True
        if now >= slot.expires:
            self._expire(slot, "max_lifetime", now - slot.born)
        elif now >= slot.best_before:
            self._expire(slot, "lease", now - slot.idle_since)
        elif not self._slots.is_current(slot):
            self._drop(slot, "a connection as old as this one was found dead")
        elif pgconn.status == ConnStatus.BAD:
            self._lose(slot, "peek")
        else:
            self._drop(slot, "it was used after its request had ended")
        return False

    def _opening(self, slot: Slot, scope: Scope) -> Opening:
        conn, settings, mode = slot.conn, self.settings, slot.mode
        if scope.isolation_level is not None or scope.read_only is not None:
            mode = transaction_mode(conn, scope.isolation_level, scope.read_only)
        return plan_open(
            slot,
            settings.statements,
            None if conn.autocommit else mode,
            scope.deadline.at - scope.deadline.now(),
            reset=settings.reset,
            ping=conn.autocommit and slot.lent > 0 and self._idle_seconds(slot) >= settings.check_after,
            census=self._census_message(slot) if slot.direct is None and self._may_census else "",
        )

    def _fleet(self, slot: Slot) -> str:
        return sql.Literal(slot.fleet).as_string(slot.conn)

    def _census_message(self, slot: Slot) -> str:
        return self.settings.statements.census(self._fleet(slot), slot.pid)

    def _introduce(self, slot: Slot, opening: Opening, answers: Answers) -> None:
        """Learn from the answer to the first open whether a pooler stands between, and the census."""
        tables = answers.tables
        if not tables or not tables[-1]:
            return
        introduce(slot, tables[-1][0])
        if not slot.direct:
            slot.conn.prepare_threshold = None
            slot.baseline.attributes["prepare_threshold"] = None
            self._announce(PoolerDetected(slot.pid))
        elif opening.census and len(tables) > 1 and tables[0]:
            slot.census = self._read_census(tables[0][0])

    def _can_do_without(self, slot: Slot, opening: Opening, answers: Answers) -> bool:
        """Tell whether the open can be sent again without what failed in it: a census, or a prepared statement."""
        if opening.census and answers.error is not None:
            self._census_failed(answers.error)
            return True
        return self._lacks_prepared(slot, answers)

    def _ending(self, slot: Slot, scope: Scope) -> Ending:
        conn = slot.conn
        pgconn = conn.pgconn
        status = TransactionStatus.ACTIVE if is_busy(conn) else pgconn.transaction_status
        ending = choose_ending(
            status,
            scope._wants_commit,
            spoiled=scope._spoiled,
            tells_failure=scope._tells_failure,
            autocommit=conn.autocommit,
            closed_by_user=status == TransactionStatus.UNKNOWN and not conn.broken,
        )
        # A COMMIT that was never sent is not an unknown one.
        return Ending.LOST if ending is Ending.COMMIT and not is_alive(pgconn) else ending

    def _announce_rollback(self, slot: Slot, scope: Scope, ending: Ending) -> None:
        if ending in (Ending.ROLLBACK, Ending.FAILED):
            status = slot.conn.pgconn.transaction_status
            self._announce(RolledBack(slot.pid, rollback_reason(status, spoiled=scope._spoiled)))

    def _strategy(self, slot: Slot) -> Strategy:
        """Return the strategy: before version 14 there are no leases, there idle sessions are ended instead."""
        strategy = self.settings.strategy
        return strategy if strategy != "lease" or slot.server_version >= LEASES_VERSION else "minimum_idle_time"

    def _lease(self, slot: Slot) -> Lease | None:
        """Return how long `slot` may stay idle after this request, ``None`` where there are no leases."""
        if not slot.direct or self._strategy(slot) != "lease":
            return None
        lease = self._history.lease(slot.born, slot.waited)
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
        is_due = slot.direct and now >= self._history.census_at and self._may_census
        return plan_close(
            slot,
            settings.statements,
            commit=commit,
            reset=settings.reset,
            lease=None if lease is None else lease.seconds,
            now=now,
            census=self._census_message(slot) if is_due else "",
        )

    def _read_close(self, slot: Slot, closing: Closing, answers: Answers) -> None:
        """Take note of the answer to the close exchange. Raises the error in it, unless the census alone failed."""
        error = answers.error
        if error is not None and not (closing.census and answers.commits == closing.commits):
            raise error
        slot.prepared = slot.prepared or closing.prepares
        if error is not None:
            self._census_failed(error)
        elif closing.census:
            slot.census = self._read_census(answers.rows[0])

    @property
    def _may_census(self) -> bool:
        """Whether a census may be asked for: unless the server refused one a moment ago."""
        return self._clock.wall() >= self._census_refused_until

    def _census_failed(self, error: Exception) -> None:
        self._maintenance_failed("census", error)
        self._census_refused_until = self._clock.wall() + max(self.settings.census_ttl, CENSUS_PAUSE)

    def _close_failed(self, ending: Ending, answers: Answers, error: Exception) -> None:
        """Announce that the end of a request failed, unless the caller hears of it anyway."""
        if ending_problem(ending, answers) is None:
            self._maintenance_failed("close", error)

    def _read_census(self, row: list[str | None]) -> Census:
        """Return the census in `row` and remember it; it says when the next one is due."""
        census = read_census([int(value or 0) for value in row], self.settings.max_connections)
        self._history.note_census(census, self._clock.dice())
        self._announce(Counted(census.used, census.fleet_used, census.room))
        return census

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
        return None if order is not None and order.interval and not self._history.may_reap else order

    def _is_unsettled(self, slot: Slot, lease: Lease) -> bool:
        has = slot.lease or 0.0
        return 0 < lease.seconds < has or (slot.elected is not None and lease.seconds > has)

    def _awake(self, lease: Lease | None) -> Lease | None:
        """Return `lease`, but long enough for what is still to be done before the connection sleeps."""
        return None if lease is None else lease._replace(seconds=max(lease.seconds, CLOSE_SECONDS))

    def _read_reap(self, slot: Slot, answers: Answers, interval: float) -> tuple[int, ...]:
        """Return the pids of those that the reaper ended. If it was an elected one, it stays that for `interval`."""
        if answers.error is not None:
            return self._reap_failed(slot, answers.error)
        killed = tuple(int(pid or 0) for pid, ended, _, _ in answers.rows if ended == "t")
        if interval and answers.rows and answers.rows[0][3] == "t":
            term = interval if killed else 0.0  # whoever found nobody need not keep others from looking
            slot.elected = int(answers.rows[0][2] or 0), self._clock.wall() + term
        if killed:
            self._announce(Reaped(killed))
        return killed

    def _reap_failed(self, slot: Slot, error: Error) -> tuple[int, ...]:
        """Announce that nobody could be ended, unless this session was ended first: by a cleaner or its own lease."""
        if not slot.conn.closed:
            self._maintenance_failed("reap", error)
        return ()

    def _lacks_prepared(self, slot: Slot, answers: Answers) -> bool:
        """Tell whether a message failed because the kit's prepared statements are gone: the user discarded them."""
        error = answers.error if slot.prepared else None
        if error is None or error.sqlstate != UNKNOWN_STATEMENT:
            return False
        self._forget_prepared(slot)
        return True

    def _forget_prepared(self, slot: Slot) -> None:
        slot.prepared, slot.lent = False, 0

    def _change_lease(self, slot: Slot, lease: Lease) -> None:
        slot.lease = lease.seconds
        if lease.seconds > 0:
            self._announce.often(Leased, slot.pid, lease.seconds, lease.reason)

    def _release(self, slot: Slot, *, keep: bool) -> None:
        """Give the place of `slot` to whoever is next in line; it goes to sleep if it is to be kept."""
        now = self._clock.wall()
        slot.idle_since, slot.census = now, None
        slot.best_before = slot.expires if slot.lease is None else min(slot.expires, now + slot.lease)
        self._history.note_release(now)
        self._slots.give_back(slot if keep else None)

    def _end_watch(self, slot: Slot, watch: Watch) -> None:
        watch.end()
        slot.watch, limit = None, self.settings.hold_warning
        if limit is not None and watch.longest_pause > limit:
            self._announce(HeldUnused(slot.pid, watch.longest_pause))

    def _understand_loss(self, error: Error) -> Failure:
        """Return the failure that a new connection is which was lost before its first statement.

        A pooler may refuse as late as this, in the answer to the first message.
        """
        text = str(error).strip() or "no reason given"
        failure = classify(text, [error.sqlstate] if error.sqlstate else [], self.settings.connect_rules)
        kind = failure.kind if failure.kind.retryable else FailureKind.NETWORK
        return failure._replace(kind=kind, message=f"lost before the first statement: {text}")

    def _close_deadline(self, deadline: Deadline, now: float) -> Deadline:
        return Deadline(max(deadline.at, now + CLOSE_SECONDS), deadline.now)

    def _lose(self, slot: Slot, seen: str) -> None:
        """Drop a connection that turned out dead."""
        idle = self._idle_seconds(slot)
        if slot.farewell == LEASE_OVER:
            self._expire(slot, "lease", idle)
        else:
            self._announce(Lost(slot.pid, seen, idle))
            self._drop(slot, f"dead ({seen})")

    def _expire(self, slot: Slot, reason: str, seconds: float) -> None:
        self._announce(Expired(slot.pid, reason, seconds))
        self._drop(slot, reason)

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
    if slots.process == processes.generation:
        for slot in slots.condemn():
            slot.conn.close()
