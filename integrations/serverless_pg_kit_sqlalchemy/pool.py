"""The pool that SQLAlchemy sees: it keeps nothing, because the kit's engine does."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.pool import ConnectionPoolEntry, NullPool

if TYPE_CHECKING:
    from serverless_pg_kit_sqlalchemy.dialect import ServerlessPgDialect


newest: ContextVar[Any] = ContextVar("serverless_pg_kit_sqlalchemy.newest", default=None)
"""The connection that was made for the checkout in progress."""


class ServerlessPgPool(NullPool):
    """Each checkout is a request on the kit's engine, and a new connection in the eyes of SQLAlchemy.

    It is one, too: nothing in its session is left of the last checkout. So the events ``connect`` and ``close`` come
    with every checkout, and whatever they set holds until its end.
    """

    def _do_get(self) -> ConnectionPoolEntry:
        newest.set(None)
        try:
            return super()._do_get()
        except BaseException:
            # SQLAlchemy 2.0 drops a connection whose ``connect`` listener has failed, and leaves it open.
            lost = newest.get()
            if lost is not None:
                self._close_connection(lost, terminate=True)
            raise
        finally:
            newest.set(None)

    def dispose(self) -> None:
        """Close the idle connections of the kit's engine; those in use are closed when they are given back."""
        cast("ServerlessPgDialect", self._dialect).kit.retire()

    def status(self) -> str:
        """Return how many connections there are."""
        stats = cast("ServerlessPgDialect", self._dialect).kit.stats
        return f"{type(self).__name__} in use: {stats.in_use} idle: {stats.open - stats.in_use}"
