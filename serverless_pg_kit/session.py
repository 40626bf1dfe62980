"""What a connection object remembers on the client's side, and how it forgets one request before the next."""

from __future__ import annotations

from typing import Any, NamedTuple

from psycopg import Connection, IsolationLevel
from psycopg.adapt import AdaptersMap

from serverless_pg_kit.statements import TransactionMode

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


class Baseline(NamedTuple):
    """A connection's own side as it was before its first request: the point to which every request returns."""

    attributes: dict[str, Any]
    lists: dict[str, list[Any]]
    adapters: AdaptersMap | None
    names: frozenset[str]

    @classmethod
    def of(cls, conn: Connection[Any]) -> Baseline:
        """Return the present state of `conn`."""
        return cls(
            {name: getattr(conn, name) for name in ATTRIBUTES},
            {name: list(getattr(conn, name)) for name in LISTS if hasattr(conn, name)},
            AdaptersMap(conn.adapters) if getattr(conn, "_adapters", None) is not None else None,
            frozenset(vars(conn)),
        )

    def restore(self, conn: Connection[Any]) -> None:
        """Put `conn`, whose session is idle, back to this state, without I/O.

        Raises ``psycopg.ProgrammingError`` if a ``transaction()`` block or a two-phase transaction was left open;
        such a connection has to be discarded.
        """
        conn.commit()  # no I/O when idle; it raises if something was left open
        while conn.pgconn.notifies():
            pass
        for name, value in self.attributes.items():
            if getattr(conn, name) != value:
                setattr(conn, name, value)
        for name, values in self.lists.items():
            held = getattr(conn, name)
            if held or values:
                held.clear()
                held.extend(values)
        if getattr(conn, "_adapters", None) is not None:
            conn._adapters = None if self.adapters is None else AdaptersMap(self.adapters)
        for name in vars(conn).keys() - self.names:
            if not name.startswith("_"):
                delattr(conn, name)


def transaction_mode(
    conn: Connection[Any], isolation_level: IsolationLevel | None, read_only: bool | None
) -> TransactionMode:
    """Return how a request's transaction begins: as asked, otherwise as `conn` is configured."""
    level = isolation_level if isolation_level is not None else conn.isolation_level
    return TransactionMode(
        None if level is None else level.name.replace("_", " "),
        read_only if read_only is not None else conn.read_only,
        conn.deferrable,
    )
