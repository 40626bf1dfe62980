"""What the engine tells about itself: events, their counts, and how they reach listeners.

Every event is a frozen dataclass with durations in seconds and counts; none holds a secret. They go to the logger
``serverless_pg_kit``, to `Stats`, and to the listeners of the setting ``on_event``. A listener that raises is logged
and ignored.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        """Tell type checkers, and nobody else, that subclasses are dataclasses."""
        return lambda cls: cls


logger: logging.Logger = logging.getLogger("serverless_pg_kit")


@dataclass_transform(frozen_default=True)
class Event:
    """Base of all events. `level` is the logging level, `counter` the field of `Stats` that counts it.

    Subclasses are frozen dataclasses by inheriting. The methods stand here once: generating them for each class would
    take a quarter of the time in which the kit is imported.
    """

    level: ClassVar[int] = logging.DEBUG
    counter: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, *values: Any, **named: Any) -> None:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]  # every subclass is a dataclass
        given = dict(zip(names, values, strict=False)) | named
        if len(values) + len(named) != len(names) or given.keys() != set(names):
            raise TypeError(f"{type(self).__name__} takes {', '.join(names)}")
        vars(self).update(given)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))


class Connected(Event):
    """A new connection is open: after `seconds` and `attempts`, as backend `pid`."""

    counter = "connects"
    pid: int
    seconds: float
    attempts: int


class Refused(Event):
    """An attempt to connect failed. `kind` is its class, `code` the SQLSTATE if there was one."""

    level = logging.INFO
    counter = "refusals"
    kind: str
    message: str
    code: str | None
    attempt: int


class Retrying(Event):
    """Another attempt to connect follows after `delay` seconds; `attempts` have been made."""

    counter = "retries"
    delay: float
    attempts: int


class Replaying(Event):
    """A transaction failed for the time being and is run again after `delay` seconds; `attempts` have been made."""

    level = logging.INFO
    counter = "replays"
    attempts: int
    error: str
    delay: float


class Reused(Event):
    """A request got a connection that was open already and had been idle for `idle` seconds."""

    counter = "reuses"
    pid: int
    idle: float


class Lost(Event):
    """An idle connection turned out dead and was dropped: seen when (`"peek"`, `"open"`), idle for `idle` seconds."""

    level = logging.INFO
    counter = "losses"
    pid: int
    seen: str
    idle: float


class Expired(Event):
    """A connection was replaced because its time was over: `reason` is ``"lease"`` (it was idle for `seconds`) or
    ``"max_lifetime"`` (it had been open for `seconds`)."""

    counter = "expirations"
    pid: int
    reason: str
    seconds: float


class Leased(Event):
    """A connection goes to sleep with another lease than before: the server ends it after `seconds` idle. `reason`
    says why it is that long."""

    counter = "leases"
    pid: int
    seconds: float
    reason: str


class Thawed(Event):
    """The process had stood still: its clock of the day went `seconds` further than its own."""

    counter = "thaws"
    seconds: float


class HeldUnused(Event):
    """A request held its connection for `seconds` without using it: longer than the setting ``hold_warning``."""

    level = logging.WARNING
    counter = "holds"
    pid: int
    seconds: float


class Counted(Event):
    """A census was taken: `used` sessions of all clients, `fleet_used` of them ours, `room` left for this role."""

    counter = "censuses"
    used: int
    fleet_used: int
    room: int


class Reaped(Event):
    """Idle sessions of the fleet were ended to make room."""

    level = logging.INFO
    counter = "reapings"
    pids: tuple[int, ...]


class Yielded(Event):
    """The engine gave up its own connection to make room."""

    level = logging.INFO
    counter = "yields"
    pid: int
    reason: str


class Committed(Event):
    """A request ended and its transaction, if it had one open, is committed."""

    counter = "commits"
    pid: int
    seconds: float


class RolledBack(Event):
    """A request's transaction was rolled back. `reason` says why."""

    counter = "rollbacks"
    pid: int
    reason: str


class Closed(Event):
    """A connection was closed or dropped by this engine. `reason` says why."""

    counter = "closes"
    pid: int
    reason: str


class PoolerDetected(Event):
    """A pooler stands between, session state is left alone. `how` says how that is known: by the setting ``pooler``, by
    the name of the host, or because the server's pid differs from the `pid` at connect."""

    level = logging.INFO
    pid: int
    how: str


class MaintenanceFailed(Event):
    """The engine's own work failed (`stage` says which part); the request was not affected."""

    level = logging.WARNING
    counter = "maintenance_failures"
    stage: str
    error: str


Listener = Callable[[Event], object]


class Stats(NamedTuple):
    """Counts of what happened in this process since the engine was made; a snapshot.

    `open` connections are in use, idle or being opened now; `in_use` counts the requests that have one or wait for one
    to open. `killed` counts ended sessions, `reapings`
    the times that any were ended. The other fields count the events of the same meaning.
    """

    open: int = 0
    in_use: int = 0
    connects: int = 0
    refusals: int = 0
    retries: int = 0
    reuses: int = 0
    losses: int = 0
    expirations: int = 0
    leases: int = 0
    thaws: int = 0
    holds: int = 0
    commits: int = 0
    rollbacks: int = 0
    replays: int = 0
    censuses: int = 0
    reapings: int = 0
    killed: int = 0
    yields: int = 0
    closes: int = 0
    maintenance_failures: int = 0


class Announcer:
    """Gives events to the log, to the counts and to the listeners."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = tuple(listeners)
        self._counts = dict.fromkeys(Stats._fields, 0)
        self.start_anew()

    def start_anew(self) -> None:
        """Make a new lock after a fork: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Count, log and announce `event`. Never raises."""
        self._count(event)
        if logger.isEnabledFor(event.level):
            logger.log(event.level, "%s", event)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("a listener failed on %s", event)

    def often(self, kind: type[Event], *values: Any) -> None:
        """Announce an event that comes with every request: it is counted always, but made only if somebody hears it."""
        if self._listeners or logger.isEnabledFor(kind.level):
            self(kind(*values))
        else:
            with self._lock:
                self._counts[kind.counter] += 1

    def _count(self, event: Event | type[Event]) -> None:
        with self._lock:
            if event.counter:
                self._counts[event.counter] += 1
            if isinstance(event, Reaped):
                self._counts["killed"] += len(event.pids)

    def stats(self, *, open: int, in_use: int) -> Stats:
        """Return the counts, with the numbers of connections `open` and `in_use` now."""
        return Stats(**self._counts | {"open": open, "in_use": in_use})
