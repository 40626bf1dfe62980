"""Which connection serves which request: bookkeeping without I/O.

At most `max_size` connections are granted or idle at a time. The most recently used idle one goes first, so that the
others grow old and are dropped; requests that find none wait in line and are served in the order they came. None is
ever reused for another target than the one it was opened for.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from psycopg.errors import Diagnostic
from psycopg.pq import TransactionStatus

from serverless_pg_kit import processes
from serverless_pg_kit.decisions.census import Census
from serverless_pg_kit.decisions.deadline import timeout_names
from serverless_pg_kit.history import NEVER, History
from serverless_pg_kit.line import LineBase
from serverless_pg_kit.session import AnyConnection, Baseline, transaction_mode
from serverless_pg_kit.statements import TransactionMode

if TYPE_CHECKING:
    from serverless_pg_kit.routine import Routine
    from serverless_pg_kit.target import Target

IDLE = int(TransactionStatus.IDLE)

SESSION_USER = b"session_authorization"
"""By this name the server tells of the session's user, and of each change with the answer to what changed it."""

NO_SPAN = math.inf, math.inf

OUTDATED = -1
"""A generation that is never the present one."""


class Slot:
    """An open connection and what the engine knows about it. Times are wall-clock seconds.

    `target` is whom it was opened for, `history` what was seen of its server, `identity` who the credentials said that
    we are. `pid` is the one given at connect, `user` the name that the session goes by from its begin. `direct` tells
    whether that pid is the backend's own: ``None`` until asked, False behind a pooler. `is_linux` and `own_timeouts`
    (milliseconds by name) are what the server told of itself and of the session, `timeout_names` those that it has.
    `changed` are the settings that the open exchange made and the close has to take back. `lease` is how long it may
    stay idle, ``None`` without a lease. `lent` counts the requests that it served before they became routine;
    `prepared` are the settings that the prepared release makes, ``None`` while `Statements.prepare` was not run;
    `prepared_timeout` is the one, in milliseconds, that an open is prepared for, `prepared_span` the remaining seconds
    that come to it, from the first to below the second; `wanted_timeout` is the one that it is to be prepared for, and
    `latest_timeout` that of the latest ordinary request with a deadline; `routine` is what its next request says, if
    that is an ordinary one, and until `steady_until` such a request has nothing to find out anew. `elected` is the key
    of the cleaner's lock and until when it is held; `hook` is what stands in for the connection's `wait`, while it is
    watched.
    """

    __slots__ = (
        "__weakref__",
        "ahead",
        "baseline",
        "begun",
        "born",
        "census",
        "changed",
        "configures_session",
        "conn",
        "direct",
        "elected",
        "expires",
        "farewell",
        "fleet",
        "generation",
        "history",
        "hook",
        "identity",
        "idle_since",
        "is_autocommit",
        "is_linux",
        "latest_timeout",
        "lease",
        "lent",
        "line",
        "may_prepare",
        "mode",
        "own_timeouts",
        "pid",
        "prepared",
        "prepared_span",
        "prepared_timeout",
        "refused_write",
        "routine",
        "server_version",
        "steady_until",
        "target",
        "timeout_names",
        "user",
        "waited",
        "wanted_timeout",
        "wants_census",
        "was_writable",
        "watch",
    )

    def __init__(
        self,
        conn: AnyConnection,
        line: LineBase,
        baseline: Baseline,
        fleet: str,
        target: Target,
        *,
        identity: bytes | None,
        born: float,
        expires: float,
        generation: int,
    ) -> None:
        self.conn: Any = conn  # the shells know of which class these two are
        self.line: Any = line
        self.baseline: Baseline = baseline
        self.fleet: str = fleet
        self.target: Target = target
        self.history: History = target.history
        self.identity: bytes | None = identity
        self.born: float = born
        self.expires: float = expires
        self.generation: int = generation
        self.pid: int = conn.pgconn.backend_pid
        self.user: bytes | None = None
        self.server_version: int = conn.pgconn.server_version
        self.idle_since: float = born
        self.mode: TransactionMode = transaction_mode(conn, None, None)
        self.is_autocommit: bool = baseline.attributes["autocommit"]
        self.direct: bool | None = None
        self.is_linux: bool = False
        self.timeout_names: tuple[str, ...] = timeout_names(self.server_version)
        self.own_timeouts: dict[str, int] = {}
        self.changed: dict[str, int] = {}
        self.lease: float | None = None
        self.lent: int = 0
        self.waited: float = 0.0  # seconds, for it to be opened
        self.begun: float = 0.0  # when the present request got it, by the monotonic clock
        self.prepared: Mapping[str, int] | None = None
        self.may_prepare: bool = True
        self.prepared_timeout: int | None = None
        self.prepared_span: tuple[float, float] = NO_SPAN
        self.wanted_timeout: int | None = None
        self.latest_timeout: int | None = None
        self.elected: tuple[int, float] | None = None
        self.census: Census | None = None  # taken in the present request
        self.watch: Any = None  # the shell's, from the first request that was watched
        self.hook: Any = None
        self.ahead: Any = None  # the shell's, while a transaction is open that was only sent ahead
        self.configures_session: bool = False
        self.wants_census: bool = False  # whatever is due
        self.farewell: str | None = None  # SQLSTATE of the server's last word
        self.refused_write: bool = False  # in the present request, because only reading was allowed
        self.was_writable: bool = b"on" not in self.reading_statuses
        self.routine: Routine | None = None
        self.steady_until: float = NEVER

    @property
    def best_before(self) -> float:
        """When its lease or its lifetime ends, if it stays idle."""
        return self.expires if self.lease is None else min(self.expires, self.idle_since + self.lease)

    @property
    def reading_statuses(self) -> tuple[bytes | None, ...]:
        """What the server has told last of why only reading is allowed (see `decisions.role.is_misled`)."""
        status = self.conn.pgconn.parameter_status
        return status(b"in_hot_standby"), status(b"default_transaction_read_only")

    @property
    def has_other_user(self) -> bool:
        """Whether the session goes by another user name than at its begin, as the server has told."""
        return bool(self.conn.pgconn.parameter_status(SESSION_USER) != self.user)

    def hear(self, notice: Diagnostic) -> None:
        """Remember the SQLSTATE of a FATAL: to a connection that idles it comes as a notice."""
        if notice.severity_nonlocalized == "FATAL":
            self.farewell = notice.sqlstate


class Waiter:
    """A request in line for `target`. `wake` is called once when it is `granted`: `slot` to use or to close, or
    ``None`` to open a new one.

    It tells whether anybody is there to be woken; otherwise nothing is granted.
    """

    def __init__(self, target: Target, wake: Callable[[], bool]) -> None:
        self.target = target
        self.wake = wake
        self.granted = False
        self.slot: Slot | None = None


class Slots:
    """The connections of one engine in one process. All methods are safe to call from several threads."""

    __slots__ = (
        "_abandoned",
        "_idle",
        "_line",
        "_lock",
        "_taken",
        "generation",
        "max_size",
        "process",
    )

    def __init__(self, max_size: int) -> None:
        self.max_size: int = max_size
        self._abandoned: list[Slot] = []
        self._start()

    def _start(self) -> None:
        self.process: int = processes.generation
        self.generation: int = 0
        self._lock = threading.Lock()
        self._idle: list[Slot] = []
        self._taken = 0
        self._line: deque[Waiter] = deque()

    def start_anew(self) -> None:
        """Forget all connections after a fork: they are the parent's to close, so they are not even collected."""
        self._abandoned += self._idle
        self._start()

    def abandon(self, slot: Slot) -> None:
        """Keep the parent's connection of a request that began before a fork from being collected."""
        self._abandoned.append(slot)

    @property
    def idle(self) -> int:
        """How many connections are open and free."""
        return len(self._idle)

    @property
    def taken(self) -> int:
        """How many requests have a connection or are opening one."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many requests wait in line."""
        return len(self._line)

    def ask(self, waiter: Waiter) -> bool:
        """Grant `waiter` a slot, or the right to open one, and return True; or put it in line and return False."""
        with self._lock:
            self._line.append(waiter)
            self._serve()
            return waiter.granted

    def take(self, target: Target) -> tuple[bool, Slot | None]:
        """Grant at once, if that is possible: True with a slot, or with ``None`` for the right to open one.

        A slot of another target than `target` is to be closed and replaced: its place is needed.
        """
        with self._lock:
            idle = self._idle
            if self._line or (not idle and self._taken >= self.max_size):
                return False, None
            position = -1 if idle and idle[-1].target is target else self._find(target)
            self._taken += 1
            return True, None if position is None else idle.pop(position)

    def take_steady(self, now: float, remaining: float) -> Slot | None:
        """Grant the most recently used idle slot, if it is in steady use, its routine is for requests with `remaining`
        seconds, and it is healthy as far as can be seen without a round trip. `now` is the time of day."""
        with self._lock:
            slot = self._idle[-1] if self._idle and not self._line else None
            if (
                slot is None
                or now >= slot.steady_until
                or slot.routine is None
                or slot.routine.longest < remaining < math.inf
                or slot.conn.pgconn.transaction_status != IDLE
                or slot.line.poll(0)
            ):
                return None
            self._taken += 1
            return self._idle.pop()

    def withdraw(self, waiter: Waiter) -> bool:
        """Take `waiter` out of the line and return True; False if it was granted meanwhile."""
        with self._lock:
            if waiter in self._line:
                self._line.remove(waiter)
            return not waiter.granted

    def give_back(self, slot: Slot | None) -> bool:
        """End a grant, and tell whether `slot` is free for the next request: not if its generation is over, and then
        it has to be closed. ``None``: its connection is gone."""
        with self._lock:
            self._taken -= 1
            is_kept = slot is not None and slot.generation == self.generation
            if slot is not None and is_kept:
                self._idle.append(slot)
            if self._line:
                self._serve()
            return is_kept

    def take_idle(self) -> Slot | None:
        """Grant the most recently used idle slot, or ``None`` if there is none; never a new one."""
        with self._lock:
            if not self._idle:
                return None
            self._taken += 1
            return self._idle.pop()

    def condemn(self, server: History | None = None) -> list[Slot]:
        """Start a new generation: return the idle slots, to be closed; those in use are outdated from now on.

        With a `server`, only its idle slots are returned, and no new generation is started.
        """
        with self._lock:
            condemned = [slot for slot in self._idle if server is None or slot.history is server]
            self._idle = [slot for slot in self._idle if slot not in condemned]
            self.generation += server is None
            self._serve()
            return condemned

    def is_current(self, slot: Slot) -> bool:
        """Tell whether `slot` was opened in this generation."""
        return slot.generation == self.generation

    def _find(self, target: Target) -> int | None:
        """Return where among the idle slots the one to take for `target` is: the most recently used of its own. If
        there is none, ``None`` while there is a place for a new one, otherwise the least recently used of all."""
        for position in range(len(self._idle) - 1, -1, -1):
            if self._idle[position].target is target:
                return position
        return None if self._taken + len(self._idle) < self.max_size else 0

    def _serve(self) -> None:
        while self._line and (self._idle or self._taken < self.max_size):
            waiter = self._line.popleft()
            position = self._find(waiter.target)
            waiter.slot = None if position is None else self._idle[position]
            waiter.granted = True
            if waiter.wake():
                self._taken += 1
                if position is not None:
                    del self._idle[position]
            else:
                waiter.slot, waiter.granted = None, False
