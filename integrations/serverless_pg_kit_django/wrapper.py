"""Django's side of a connection: what of its PostgreSQL backend is different on an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS
from django.db.backends.base.base import NO_DB_ALIAS
from django.utils.asyncio import async_unsafe

from serverless_pg_kit_django.config import check_names, kit_names
from serverless_pg_kit_django.lender import Lender

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper

    class PostgreSQL(DatabaseWrapper):
        """Django's backend, with the methods that its stubs leave out."""

        def _close(self) -> None: ...
        def _configure_connection(self, connection: Any) -> bool: ...

else:
    PostgreSQL = object


class EngineConnections(PostgreSQL):
    """Put before any of Django's PostgreSQL backends, it lets their connections come from an engine.

    ``class DatabaseWrapper(EngineConnections, OtherDatabaseWrapper)`` in the ``base`` module of a package of yours
    makes a backend of it. Raises ``ImproperlyConfigured`` for bad settings.
    """

    connection: Any

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> None:
        super().__init__(settings_dict, alias)
        self._lender = Lender(self)
        check_names(alias, kit_names(self))

    @property
    def _lends(self) -> bool:
        """Whether the engine serves this wrapper: not that for creating databases, nor one with a pool of its own."""
        return self.alias != NO_DB_ALIAS and not self.settings_dict["OPTIONS"].get("pool")

    @property
    def pool(self) -> Any:
        """What Django takes connections from, and gives them back to."""
        return self._lender if self._lends else super().pool

    def close_pool(self) -> None:
        """Close the idle connections to this database: before it is copied or dropped, as Django does with pools."""
        if self._lends:
            self._lender.close()
        else:
            super().close_pool()

    def get_connection_params(self) -> dict[str, Any]:
        """Return psycopg's parameters: all of Django's, without the kit's own."""
        params: dict[str, Any] = super().get_connection_params()
        params.pop("serverless", None)
        return params

    @async_unsafe
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Return a connection of the engine. Raises what `Engine.request` raises."""
        self._lender.params = conn_params
        return super().get_new_connection(conn_params)

    @async_unsafe
    def create_cursor(self, name: str | None = None) -> Any:
        """Return a cursor, which is closed with its request."""
        cursor = super().create_cursor(name)
        self._lender.cursors.add(cursor)
        return cursor

    def init_connection_state(self) -> None:
        """Set time zone and role, where the engine has not: behind a pooler, whose sessions are not the engine's."""
        super().init_connection_state()
        if (
            self._lends
            and not self._lender.is_direct
            and self._configure_connection(self.connection)
            and not self.get_autocommit()
        ):
            self.connection.commit()

    @async_unsafe
    def ensure_connection(self) -> None:
        """Acquire a connection if there is none, also in the child of a process that had one when it forked."""
        if self._lender.is_inherited:
            self._lender.give_back()
            self.connection = None
        super().ensure_connection()

    def _close(self) -> None:
        with self.wrap_database_errors:
            if self._lender.give_back():
                self.connection = None  # it may serve another request already
            elif self._lends and self.connection is not None:  # somebody put one here
                self.connection.close()
            else:
                super()._close()

    def close_if_unusable_or_obsolete(self) -> None:
        """Give the connection back: Django asks for this when a request begins and when it has ended, whatever
        ``CONN_MAX_AGE``. What is kept is kept by the engine, for any thread."""
        if self._lends:
            self.close()
        else:
            super().close_if_unusable_or_obsolete()
