"""What a connection object remembers on the client's side, and how it forgets one request before the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection, Connection, IsolationLevel
from psycopg.adapt import AdaptersMap
from psycopg.errors import Diagnostic
from psycopg.pq import PGconn

from serverless_pg_kit.statements import TransactionMode

if TYPE_CHECKING:
    from typing import TypeAlias

ATTRIBUTES = (
    "autocommit",
    "isolation_level",
    "read_only",
    "deferrable",
    "row_factory",
    "cursor_factory",
    "server_cursor_factory",
    "prepare_threshold",
    "prepared_max",
)
"""psycopg's public attributes that a request may change."""

BACKLOG = "_notifies_backlog"
"""Where psycopg keeps the notifications that nobody has fetched."""

LISTS = ("_notice_handlers", "_notify_handlers", BACKLOG)
"""psycopg keeps these in private lists, with no public way to empty them. A version without them loses nothing: what
is not there cannot leak."""


AnyConnection: TypeAlias = "Connection[Any] | AsyncConnection[Any]"
"""What either shell makes."""


def assign(conn: AnyConnection, name: str, value: Any) -> None:
    """Set the attribute `name` of an idle connection, without I/O. psycopg's async connections have no setters."""
    steps = getattr(conn, f"_set_{name}_gen", None)
    if steps is None:
        setattr(conn, name, value)
    else:
        next(steps(value), None)


def has_prepared(conn: AnyConnection) -> bool:
    """Tell whether psycopg has prepared statements on `conn`: then its rollback discards all, the kit's too."""
    return bool(getattr(conn._prepared, "_names", True))


@contextmanager
def counted_waits(conn: AnyConnection) -> Iterator[list[None]]:
    """Yield a list that grows by one with each time that `conn` talks to the server inside the block."""
    waits: list[None] = []
    wait, own = conn.wait, vars(conn).get("wait")

    def counting(*args: Any, **kwargs: Any) -> Any:
        waits.append(None)
        return wait(*args, **kwargs)

    vars(conn)["wait"] = counting
    try:
        yield waits
    finally:
        if conn.wait is counting:  # otherwise another one was put there meanwhile
            put(vars(conn), "wait", own)


def put(own: dict[str, Any], name: str, value: Any) -> None:
    """Let an object whose `own` attributes these are have this one; ``None`` stands for its class's."""
    if value is None:
        own.pop(name, None)
    else:
        own[name] = value


@cache
def drivers_names() -> frozenset[str]:
    """Return the names of all that psycopg itself keeps in the ``__dict__`` of a connection."""
    unconnected = PGconn.connect_start(b"=")  # no connection string: nothing is connected to
    return frozenset(vars(Connection(unconnected)) | vars(AsyncConnection(unconnected)))


class Baseline:
    """A connection's own side as it was before its first request: the point to which every request returns.

    `unconfigured` is the one from before ``configure``.
    """

    __slots__ = (
        "_adapters",
        "_backlog",
        "_dumpers",
        "_dumpers_by_oid",
        "_kept",
        "_lists",
        "_loaders",
        "_most",
        "_others",
        "_seen",
        "_threshold",
        "_types",
        "_unconfigured",
        "attributes",
    )

    def __init__(self, conn: AnyConnection, unconfigured: Baseline | None = None) -> None:
        self.attributes: dict[str, Any] = {name: getattr(conn, name) for name in ATTRIBUTES}
        self._unconfigured = unconfigured
        self._adapters = AdaptersMap(conn.adapters)
        self._types, self._loaders = self._adapters.types._registry, self._adapters._loaders
        self._dumpers, self._dumpers_by_oid = self._adapters._dumpers, self._adapters._dumpers_by_oid
        self._lists = {name: list(getattr(conn, name)) for name in LISTS if hasattr(conn, name)}
        self._others = {name: value for name, value in vars(conn).items() if name not in drivers_names()}
        self._remember(conn)

    def keep_notice_handler(self, handler: Callable[[Diagnostic], None]) -> None:
        """Let `handler` be one of those that every request starts from, and every run of ``configure``."""
        self._lists.get("_notice_handlers", []).append(handler)
        if self._unconfigured is not None:
            self._unconfigured.keep_notice_handler(handler)

    def stop_preparing(self) -> None:
        """Let every request start without prepared statements, and every run of ``configure``."""
        self.attributes["prepare_threshold"] = None
        if self._unconfigured is not None:
            self._unconfigured.stop_preparing()

    def restore(self, conn: AnyConnection) -> None:
        """Put `conn`, whose session is idle, back to this state, without I/O.

        Raises ``psycopg.ProgrammingError`` if a ``transaction()`` block or a two-phase transaction was left open;
        such a connection has to be discarded.
        """
        while conn.pgconn.notifies():
            pass
        if not self.is_kept(conn):
            self._put_back(conn)

    def is_kept(self, conn: AnyConnection) -> bool:
        """Tell whether all that psycopg and the user keep on `conn` is as it was.

        That is one look at all of it: mostly nothing has changed since the last time. The parts of the map of adapters
        are shared with the baseline's own, so they compare as equal at once, until one is changed.
        """
        prepared, kept = conn._prepared, self._kept
        try:
            return (
                conn.__dict__ == self._seen
                and not self._backlog  # a deque takes long to compare
                and prepared.prepare_threshold == self._threshold
                and prepared.prepared_max == self._most
                and kept.types._registry is self._types
                and kept._loaders == self._loaders
                and kept._dumpers == self._dumpers
                and kept._dumpers_by_oid == self._dumpers_by_oid
            )
        except Exception:  # something hung on by the user cannot be compared
            return False

    def expect(self, name: str, value: Any) -> None:
        """Take the attribute `name`, which the kit has given this `value`, for what it was; ``None`` stands for that of
        the connection's class."""
        put(self._seen, name, value)

    def restore_unconfigured(self, conn: AnyConnection) -> None:
        """Do what `restore` does, but back to the state before ``configure``, which is to follow."""
        (self._unconfigured or self).restore(conn)

    def _put_back(self, conn: AnyConnection) -> None:
        next(conn._commit_gen(), None)  # does nothing when idle, but raises if something was left open
        for name, value in self.attributes.items():
            if getattr(conn, name) != value:
                assign(conn, name, value)
        for name, values in self._lists.items():
            getattr(conn, name).clear()
            getattr(conn, name).extend(values)
        self._put_back_others(vars(conn))
        conn._adapters = AdaptersMap(self._adapters)
        self._remember(conn)

    def _put_back_others(self, own: dict[str, Any]) -> None:
        """Put back what is not psycopg's: attributes of a class of one's own, or hung on by anybody."""
        for name in own.keys() - drivers_names() - self._others.keys():
            del own[name]
        own.update(self._others)

    def _remember(self, conn: AnyConnection) -> None:
        self._kept = conn.adapters  # psycopg's own map, which it creates at the first touch and fills in place
        self._threshold, self._most = conn._prepared.prepare_threshold, conn._prepared.prepared_max
        # The lists are the same objects all the time; it is their contents that are compared.
        self._seen = vars(conn) | {name: getattr(conn, name).copy() for name in self._lists if name != BACKLOG}
        self._backlog = getattr(conn, BACKLOG, None)


def transaction_mode(
    conn: AnyConnection, isolation_level: IsolationLevel | None, read_only: bool | None
) -> TransactionMode:
    """Return how a request's transaction begins: as asked, otherwise as `conn` is configured."""
    level = isolation_level if isolation_level is not None else conn.isolation_level
    return TransactionMode(
        None if level is None else level.name.replace("_", " "),
        read_only if read_only is not None else conn.read_only,
        conn.deferrable,
    )
