"""What a connection object remembers on the client's side, and how it forgets one request before the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection, Connection, IsolationLevel
from psycopg.adapt import AdaptersMap
from psycopg.errors import Diagnostic

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

LISTS = ("_notice_handlers", "_notify_handlers", "_notifies_backlog")
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


@contextmanager
def counted_waits(conn: AnyConnection) -> Iterator[list[None]]:
    """Yield a list that grows by one with each time that `conn` talks to the server inside the block."""
    waits: list[None] = []
    wait = conn.wait

    def counting(*args: Any, **kwargs: Any) -> Any:
        waits.append(None)
        return wait(*args, **kwargs)

    vars(conn)["wait"] = counting
    try:
        yield waits
    finally:
        del vars(conn)["wait"]


class Baseline:
    """A connection's own side as it was before its first request: the point to which every request returns."""

    def __init__(self, conn: AnyConnection) -> None:
        self.attributes: dict[str, Any] = {name: getattr(conn, name) for name in ATTRIBUTES}
        self._adapters = AdaptersMap(conn.adapters)
        self._lists = [(name, list(getattr(conn, name))) for name in LISTS if hasattr(conn, name)]
        self._remember(conn)

    def keep_notice_handler(self, handler: Callable[[Diagnostic], None]) -> None:
        """Let `handler` be one of those that every request starts from."""
        for name, values in self._lists:
            if name == "_notice_handlers":
                values.append(handler)

    def restore(self, conn: AnyConnection) -> None:
        """Put `conn`, whose session is idle, back to this state, without I/O.

        Raises ``psycopg.ProgrammingError`` if a ``transaction()`` block or a two-phase transaction was left open;
        such a connection has to be discarded.
        """
        while conn.pgconn.notifies():
            pass
        for name, values in self._lists:
            held = getattr(conn, name)
            if values or held:
                held.clear()
                held.extend(values)
        # One look at all that psycopg and the user keep on the object: mostly nothing has changed since the last time.
        if vars(conn) != self._state or vars(conn._prepared) != self._statements:
            self._restore_attributes(conn)
        if conn._adapters is not None and not same_adapters(conn._adapters, self._adapters):
            conn._adapters = AdaptersMap(self._adapters)
            self._remember(conn)

    def _restore_attributes(self, conn: AnyConnection) -> None:
        next(conn._commit_gen(), None)  # does nothing when idle, but raises if something was left open
        for name, value in self.attributes.items():
            if getattr(conn, name) != value:
                assign(conn, name, value)
        for name in vars(conn).keys() - self._state.keys():
            if not name.startswith("_"):
                delattr(conn, name)
        self._remember(conn)

    def _remember(self, conn: AnyConnection) -> None:
        self._state = dict(vars(conn))
        self._statements = dict(vars(conn._prepared))


def same_adapters(one: AdaptersMap, other: AdaptersMap) -> bool:
    """Tell whether two maps adapt the same: at once if neither was changed since one was copied from the other."""
    return bool(
        one._dumpers == other._dumpers
        and one._dumpers_by_oid == other._dumpers_by_oid
        and one._loaders == other._loaders
        and one.types._registry == other.types._registry
    )


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
