"""What both shells share: the state of an engine, and its bookkeeping."""

from __future__ import annotations

import math
import os
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from psycopg import Connection, sql

from serverless_pg_kit import processes, snapstart
from serverless_pg_kit.announcer import Announcer
from serverless_pg_kit.clock import Clock
from serverless_pg_kit.conninfo import Conninfo
from serverless_pg_kit.crowd import Crowd
from serverless_pg_kit.decisions.backoff import Backoff
from serverless_pg_kit.decisions.census import Census, read_census
from serverless_pg_kit.decisions.deadline import Deadline, open_seconds
from serverless_pg_kit.decisions.size import is_oversized, known_processes
from serverless_pg_kit.errors import SettingsError
from serverless_pg_kit.events import (
    Cancelled,
    Closed,
    Counted,
    Event,
    Expired,
    HeldUnused,
    Listener,
    Lost,
    MaintenanceFailed,
    Oversized,
    Restarted,
    Thawed,
)
from serverless_pg_kit.exchange import Answers
from serverless_pg_kit.history import NEVER, History
from serverless_pg_kit.line import LineBase
from serverless_pg_kit.scope_base import WorkBase
from serverless_pg_kit.session import AnyConnection, has_prepared
from serverless_pg_kit.settings import LISTENER, Settings, is_listener
from serverless_pg_kit.slots import NO_SPAN, OUTDATED, Slot, Slots
from serverless_pg_kit.sqlstate import TraceRation
from serverless_pg_kit.target import Target, Targets, Tenant

if TYPE_CHECKING:
    from serverless_pg_kit.stats import Stats

CENSUS_PAUSE = 1.0
"""Seconds, at least, before a census that the server refused is tried again."""

LOOK_SECONDS = 1.0
"""Seconds, at most, in which nothing is found out anew for the ordinary requests of a connection in steady use: whether
the process was frozen, say, or the log has another level. Not longer than `THAW_SECONDS`."""

THAW_SECONDS = 1.0
"""By how much the time of day has to outrun the process's own clock for a thaw: less is the clock being set."""

UNKNOWN_STATEMENT = "26000"
"""SQLSTATE of a prepared statement that does not exist."""

LEASE_OVER = "57P05"
"""SQLSTATE of a session that was ended by ``idle_session_timeout``."""


class EngineBase:
    """Settings, slots, history and announcements of an engine. The shells say of which classes its connections are."""

    _connection_class: type[AnyConnection]
    _line_class: type[LineBase]

    def __init__(self, settings: Settings | None = None, /, **names: Any) -> None:
        if settings is not None and not isinstance(settings, Settings):
            raise TypeError(
                f"pass Settings or single settings, as in Engine(conninfo=...), not {type(settings).__name__}"
            )
        if settings is not None and names:
            raise TypeError("pass a Settings object or single settings, not both")
        self.settings: Settings = Settings.from_env(**names) if settings is None else settings
        self.settings.parameters(os.environ)  # so that a bad DATABASE_URL is told here and not in the first request
        self._connection_class = self._checked_class()
        self._clock = Clock()
        self._own = Target(History(self._clock, self.settings))
        self._current: ContextVar[Any] = ContextVar("serverless_pg_kit.scope", default=None)
        self._announce = Announcer(self.settings.listeners(), self._current, self.settings.application_name)
        self._slots = Slots(self.settings.max_size)
        self._open_slots: Crowd[Slot] = Crowd()
        self._tracing = TraceRation(always=any(rule.codes for rule in self.settings.connect_rules))
        self._backoff = Backoff(self.settings.backoff_base, self.settings.backoff_cap, self.settings.max_retries)
        self._patience: float = open_seconds(is_fresh=False, remaining=self.settings.max_wait)
        self._ample: float = 2 * self._patience
        self._told: set[str] = set()
        self._forgotten: deque[Slot] = deque()  # of requests that were collected before they ended
        self._start()
        self._finalizer = weakref.finalize(self, _close_all, self._slots, self._forgotten)
        snapstart.engines.add(self)

    def _checked_class(self) -> type[AnyConnection]:
        """Return the class that the settings want; the shell's own stands for psycopg's default."""
        wanted, own = self.settings.connection_class, type(self)._connection_class
        if wanted is not Connection and not issubclass(wanted, own):
            raise SettingsError(
                f"connection_class: {type(self).__name__} needs a subclass of {own.__name__}, not {wanted.__name__}"
            )
        return own if wanted is Connection else wanted

    def _start(self) -> None:
        new_history = partial(History, self._clock, self.settings)  # no method: a cycle would keep the engine open
        self._targets = Targets(new_history)
        self._own.history, self._own.address = new_history(), None
        self._now, self._wall = self._clock.monotonic, self._clock.wall  # for who is in a hurry
        self._drift = self._wall() - self._now()
        self._identity: bytes | None = None  # who the credentials said we are, the last time
        self._invalidated_at = NEVER

    @property
    def _history(self) -> History:
        """What was seen of the settings' own server."""
        return self._own.history

    def _live_by(self, clock: Clock) -> None:
        """Take time and chance from `clock` from now on, and forget what was seen by another one."""
        self._clock = clock
        self._start()
        for slot in self._open_slots:
            slot.history, slot.routine, slot.steady_until = self._own.history, None, NEVER

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._slots.taken} in use, {self._slots.idle} idle, {self.settings!r}>"

    @property
    def stats(self) -> Stats:
        """What happened in this process since the engine was made: a snapshot of counts and sums."""
        from serverless_pg_kit.stats import Stats

        if self._slots.process != processes.generation:  # only a request may begin anew: this may be any thread
            return Stats()
        taken, idle = self._slots.taken, self._slots.idle
        return self._announce.stats(open=taken + idle, in_use=taken, waiting=self._slots.waiting)

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` with every event from now on, after those of the setting ``on_event``.

        For engines that others made, such as `default_engine`. It stays for as long as the engine lives. Raises
        `SettingsError` for what cannot be called, or not without ``await``.
        """
        if not is_listener(listener):
            raise SettingsError(f"add_listener({type(listener).__name__}) is not allowed: {LISTENER}")
        self._announce.add_listener(listener)
        self._look_closer()

    def retire(self) -> None:
        """Close all connections: idle ones now, others when their requests end, the current one's too.

        Nothing is rolled back and nothing is waited for. New requests open new connections.
        """
        self._check_process()
        self._condemn("it was retired")

    def _check_process(self) -> None:
        if self._slots.process != processes.generation:
            self._start_anew()

    def _start_anew(self) -> None:
        """Forget all that is the parent's, in a forked child or a copy of a snapshot."""
        abandoned = self._slots.idle + len(self._forgotten)
        while self._forgotten:
            self._slots.abandon(self._forgotten.popleft())
        self._slots.start_anew()
        self._open_slots = Crowd()
        self._announce.start_anew()
        self._start()
        self._announce(Restarted("fork", abandoned))

    def _tenant(self, conninfo: Conninfo) -> Tenant | None:
        """Return whom a request with `conninfo` is for, ``None`` for the settings' own. Raises `SettingsError`."""
        return self._targets.tenant(conninfo, self.settings.parameters)

    def _until(self, seconds: float | None) -> float:
        return math.inf if seconds is None else self._clock.monotonic() + seconds

    def _deadline(self, seconds: float | None) -> Deadline:
        return Deadline(self._until(seconds), self._clock.monotonic)

    def _begin_work(self, scope: WorkBase, monotonic: float, wall: float) -> Target:
        """Look at what happened since the last request: a fork, a thaw, requests that nobody ended. Both are clocks.

        Monotonic time may stop in a freeze, the time of day does not. Returns whom `scope` is for.
        """
        if self._slots.process != processes.generation:
            self._start_anew()
        if self._forgotten:
            self._reclaim()
        drift = wall - monotonic
        frozen, self._drift = drift - self._drift, drift
        target = self._own if scope._tenant is None else scope._tenant.target
        target.history.note_request(wall)
        self._announce.look_around()
        if frozen > THAW_SECONDS:
            self._announce(Thawed(frozen))
        return target

    def _steady_until(self, slot: Slot, now: float) -> float:
        """Return until when the ordinary requests of `slot`, which goes to sleep `now`, need no closer look."""
        is_steady = (
            slot.routine is not None
            and slot.target is self._own
            and slot.identity == self._identity
            and not self._announce.is_heard
            and self.settings.hold_warning is None
        )
        return min(now + LOOK_SECONDS, slot.best_before, slot.history.census_at) if is_steady else NEVER

    def _look_closer(self) -> None:
        """Let every connection's next request find out what it needs: something has changed for all of them."""
        for slot in self._open_slots:
            slot.steady_until = NEVER

    def _reclaim(self) -> None:
        """Close the connections of requests that were begun by hand and collected before they ended."""
        while self._forgotten:
            slot = self._forgotten.popleft()
            self._slots.give_back(None)
            self._drop(slot, "its request was never ended")

    def _condemn(self, reason: str, server: History | None = None) -> None:
        """Close all idle connections, or those to one `server`, and let those in use be the last of their kind."""
        condemned = self._slots.condemn(server)
        for slot in self._open_slots if server is not None else ():
            if slot.history is server:
                slot.generation = OUTDATED
        for slot in condemned:
            _close(slot)
        for slot in condemned:
            self._drop(slot, reason)

    def _surrender(self) -> tuple[list[Slot], list[Slot]]:
        """Start a new generation; return the connections that were idle and are nobody's now, and all that are open."""
        self._check_process()
        return self._slots.condemn(), list(self._open_slots)

    def _idle_seconds(self, slot: Slot) -> float:
        return max(0.0, self._clock.wall() - slot.idle_since)

    def _fleet(self, slot: Slot) -> str:
        return sql.Literal(slot.fleet).as_string(slot.conn)

    def _census_message(self, slot: Slot) -> str:
        return self.settings.statements.census(self._fleet(slot), slot.pid)

    def _may_census(self, slot: Slot) -> bool:
        """Tell whether a census may be asked for: unless the server refused one a moment ago."""
        return self._clock.wall() >= slot.history.census_refused_until

    def _census_failed(self, slot: Slot, error: Exception) -> None:
        self._maintenance_failed("census", error)
        slot.history.census_refused_until = self._clock.wall() + max(self.settings.census_ttl, CENSUS_PAUSE)

    def _read_census(self, slot: Slot, row: list[str | None]) -> Census:
        """Return the census in `row` and remember it; it says when the next one is due."""
        census = read_census([int(value or 0) for value in row], self.settings.max_connections)
        before = slot.history.calm
        slot.history.note_census(census, self._clock.dice())
        if slot.history.calm != before:
            self._look_closer()
        self._announce(Counted(census.used, census.fleet_used, census.room))
        self._check_size(census.ceiling)
        return census

    def _check_size(self, ceiling: int) -> None:
        """Announce, once, that this process and its like could open more connections than the server has for them."""
        processes, max_size = known_processes(os.environ), self.settings.max_size
        if "size" not in self._told and processes is not None and is_oversized(processes, max_size, ceiling):
            self._told.add("size")
            self._announce(Oversized(processes, max_size, ceiling))

    def _lacks_prepared(self, slot: Slot, answers: Answers) -> bool:
        """Tell whether a message failed because the kit's prepared statements are gone: the user discarded them."""
        error = None if slot.prepared is None else answers.error
        if error is None or error.sqlstate != UNKNOWN_STATEMENT:
            return False
        self._forget_prepared(slot)
        # Otherwise it was the user, who may have discarded some of them: the names of others would be taken.
        slot.may_prepare = not has_prepared(slot.conn)
        return True

    def _forget_prepared(self, slot: Slot) -> None:
        slot.prepared, slot.lent, slot.routine, slot.steady_until = None, 0, None, NEVER
        slot.prepared_timeout = slot.wanted_timeout = slot.latest_timeout = None
        slot.prepared_span = NO_SPAN

    def _end_watch(self, slot: Slot) -> None:
        """Watch the connection of `slot` no more, and take note of what was noted."""
        watch, slot.hook, slot.refused_write = slot.watch, None, False
        if watch.end():
            slot.refused_write, limit = watch.refused_write, self.settings.hold_warning
            if watch.cancelled:
                self._announce(Cancelled(slot.pid))
            if limit is not None and watch.longest_pause > limit:
                self._announce(HeldUnused(slot.pid, watch.longest_pause))

    def _lose(self, slot: Slot, seen: str) -> None:
        """Drop a connection that turned out dead."""
        idle = self._idle_seconds(slot)
        if slot.farewell == LEASE_OVER:
            self._expire(slot, "lease", idle)
        else:
            self._drop(slot, f"dead ({seen})", Lost(slot.pid, seen, idle))

    def _expire(self, slot: Slot, reason: str, seconds: float) -> None:
        if reason == "lease":
            slot.history.note_yield()
        self._drop(slot, reason, Expired(slot.pid, reason, seconds))

    def _drop(self, slot: Slot, reason: str, *why: Event) -> None:
        """Close a connection, whatever its state, and announce `why` and that it is closed. Never raises."""
        _close(slot)  # first: a listener may let a KeyboardInterrupt pass
        for event in (*why, Closed(slot.pid, reason, max(0.0, self._clock.wall() - slot.born))):
            self._announce(event)

    def _maintenance_failed(self, stage: str, error: object) -> None:
        """Announce the failure of the engine's own work, once for each stage and kind of error; count it always."""
        key = f"{stage} {type(error).__name__}"
        if key in self._told:
            self._announce.count_only(MaintenanceFailed)
        else:
            self._told.add(key)
            self._announce(MaintenanceFailed(stage, str(error).strip()))


def _close(slot: Slot) -> None:
    with suppress(Exception):
        slot.line.close()


def _close_all(slots: Slots, forgotten: Iterable[Slot]) -> None:
    """Close what is idle, or `forgotten` by its request, when the engine is collected or the interpreter exits, so that
    the server need not notice."""
    if slots.process == processes.generation:
        for slot in (*slots.condemn(), *forgotten):
            slot.line.close()
