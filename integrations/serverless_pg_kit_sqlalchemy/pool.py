"""The pool that SQLAlchemy sees: it keeps nothing, because the kit's engine does."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from serverless_pg_kit_sqlalchemy.dialect import ServerlessPgDialect


class ServerlessPgPool(NullPool):
    """Each checkout is a request on the kit's engine, and a new connection in the eyes of SQLAlchemy.

    It is one, too: nothing in its session is left of the last checkout. So the events ``connect`` and ``close`` come
    with every checkout, and whatever they set holds until its end.
    """

    def dispose(self) -> None:
        """Close the idle connections of the kit's engine; those in use are closed when they are given back."""
        cast("ServerlessPgDialect", self._dialect).kit.retire()

    def status(self) -> str:
        """Return how many connections there are."""
        stats = cast("ServerlessPgDialect", self._dialect).kit.stats
        return f"{type(self).__name__} in use: {stats.in_use} idle: {stats.open - stats.in_use}"
