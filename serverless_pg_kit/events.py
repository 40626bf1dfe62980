"""What the engine tells about itself: one frozen dataclass for each kind of event, and their counts.

Durations are seconds; nothing here holds a secret. `announcer` brings the events to the log, to `Stats` and to the
listeners of the setting ``on_event``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        """Tell type checkers, and nobody else, that subclasses are dataclasses."""
        return lambda cls: cls


class LazyFields:
    """Makes a kind of event a dataclass when somebody first asks for its fields: for all of them at once, that would
    take a quarter of the time in which the kit is imported."""

    def __get__(self, event: Event | None, kind: type[Event]) -> Any:
        if kind is Event:
            raise AttributeError("Event is the base of dataclasses, and none itself")
        dataclass(init=False, repr=False, eq=False)(kind)  # replaces this for the class
        return vars(kind)["__dataclass_fields__"]


@dataclass_transform(frozen_default=True)
class Event:
    """Base of all events. `level` is the logging level, `counter` the field of `Stats` that counts it, `total` the one
    that sums its `seconds`.

    Subclasses are frozen dataclasses by inheriting. Their methods stand here once.
    """

    level: ClassVar[int] = logging.DEBUG
    counter: ClassVar[str] = ""
    total: ClassVar[str] = ""
    __match_args__: ClassVar[tuple[str, ...]]
    if not TYPE_CHECKING:
        __dataclass_fields__ = LazyFields()

    def __init_subclass__(cls) -> None:
        cls.__match_args__ = tuple(cls.__annotations__)  # type: ignore[misc]  # to mypy it is a dataclass's own

    def __init__(self, *values: Any, **named: Any) -> None:
        names = self.__match_args__
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

    def __replace__(self, **changes: Any) -> Any:
        return type(self)(**vars(self) | changes)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))


class Connected(Event):
    """A new connection serves its first request, as backend `pid`. The request got it after `seconds`, all in, and
    `attempts`, of which the last took `connecting` seconds."""

    counter = "connects"
    total = "connect_seconds"
    pid: int
    seconds: float
    attempts: int
    connecting: float


class Refused(Event):
    """An attempt to connect failed after `seconds`. `kind` is its class, `code` the SQLSTATE if there was one."""

    level = logging.INFO
    counter = "refusals"
    kind: str
    message: str
    code: str | None
    attempt: int
    seconds: float


class Retrying(Event):
    """Another attempt to connect follows after `delay` seconds; `attempts` have been made."""

    counter = "retries"
    delay: float
    attempts: int


class Paused(Event):
    """A request lets others pass, for `seconds`, before its first attempt to connect: the container gave up its last
    connection for them, and it took long to come by."""

    counter = "pauses"
    seconds: float


class CredentialsRefreshed(Event):
    """The server rejected what the setting ``credentials`` returned, so they were asked again, which took `seconds`.
    `changed` tells whether they said something else; if so, it is tried at once."""

    level = logging.INFO
    counter = "credential_refreshes"
    changed: bool
    seconds: float


class Replaying(Event):
    """A transaction failed for the time being and is run again after `delay` seconds; `attempts` have been made."""

    level = logging.INFO
    counter = "replays"
    attempts: int
    error: str
    delay: float


class Waited(Event):
    """All connections of the process were in use: a request waited `seconds` in line until it was its turn."""

    counter = "waits"
    total = "wait_seconds"
    seconds: float


class GaveUp(Event):
    """A request got no connection, after `seconds` and `attempts`: it hears the error of the class `error`."""

    level = logging.INFO
    counter = "failures"
    total = "failure_seconds"
    error: str
    seconds: float
    attempts: int


class Down(Event):
    """The server was down for a whole acquisition: for `seconds`, requests get one attempt each and do not wait."""

    level = logging.WARNING
    counter = "downs"
    seconds: float


class Reused(Event):
    """A request got, after `seconds`, a connection that was open already and had been idle for `idle` seconds."""

    counter = "reuses"
    pid: int
    idle: float
    seconds: float


class Released(Event):
    """A request ended and gave its connection back, which it had used for `seconds`. `kept` says whether that stays
    open for the next one."""

    pid: int
    seconds: float
    kept: bool


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
    total = "frozen_seconds"
    seconds: float


class Restarted(Event):
    """The engine began anew, because of a `reason` such as ``"fork"``: `abandoned` connections are left to whoever
    opened them, and neither used nor closed here."""

    level = logging.INFO
    counter = "restarts"
    reason: str
    abandoned: int


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


class Oversized(Event):
    """This container runs so many `processes`, as its environment tells, that they could open more connections than the
    server has for this role, `ceiling`: each may open `max_size`. Told once. Lower the setting ``max_size``."""

    level = logging.WARNING
    processes: int
    max_size: int
    ceiling: int


class Reaped(Event):
    """Idle sessions of the fleet were ended to make room; that took `seconds`."""

    level = logging.INFO
    counter = "reapings"
    pids: tuple[int, ...]
    seconds: float


class Yielded(Event):
    """The engine gave up its own connection to make room."""

    level = logging.INFO
    counter = "yields"
    pid: int
    reason: str


class Committed(Event):
    """A request ended and its transaction is committed. The end, with all that belongs to it, took `seconds`."""

    counter = "commits"
    pid: int
    seconds: float


class RolledBack(Event):
    """A request's transaction was rolled back. `reason` says why."""

    counter = "rollbacks"
    pid: int
    reason: str


class NotCommitted(Event):
    """A request ended with an error instead of a commit: `error` is its class, `code` the SQLSTATE if there was one."""

    level = logging.INFO
    counter = "commit_failures"
    pid: int
    error: str
    code: str | None


class Cancelled(Event):
    """A statement ran past the deadline of its request, where the server's own time-out does not help: it was
    cancelled."""

    level = logging.INFO
    counter = "cancels"
    pid: int


class Closed(Event):
    """A connection was closed or dropped by this engine, `seconds` after it was opened. `reason` says why."""

    counter = "closes"
    pid: int
    reason: str
    seconds: float


class PoolerDetected(Event):
    """A pooler stands between, session state is left alone. `how` says how that is known: by the setting ``pooler``, by
    the name of the host, or because the server's pid differs from the `pid` at connect."""

    level = logging.INFO
    pid: int
    how: str


class MaintenanceFailed(Event):
    """The engine's own work failed (`stage` says which part); the request was not affected. Told once for each stage
    and kind of error, but counted always."""

    level = logging.WARNING
    counter = "maintenance_failures"
    stage: str
    error: str


Listener = Callable[[Event], object]
