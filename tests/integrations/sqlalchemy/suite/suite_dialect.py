"""Our dialects in the form in which SQLAlchemy's test suite makes engines: by URL."""

from __future__ import annotations

import weakref
from typing import Any

from psycopg.conninfo import make_conninfo
from sqlalchemy import URL
from sqlalchemy.dialects import registry

from serverless_pg_kit import AsyncEngine, Engine
from serverless_pg_kit_sqlalchemy.async_dialect import ServerlessPgAsyncDialect
from serverless_pg_kit_sqlalchemy.dialect import ServerlessPgDialect

NAME = "postgresql.serverless_pg_suite"
registry.register(NAME, __name__, "SuiteDialect")

engines: weakref.WeakSet[Any] = weakref.WeakSet()


class SuiteDialect(ServerlessPgDialect):
    """Makes an engine of the kit for each engine of SQLAlchemy, as the tests make many and close few."""

    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> Any:
        """Take the server from the URL."""
        params = url.translate_connect_args(username="user", database="dbname")
        self._kit = (AsyncEngine if self.is_async else Engine)(conninfo=make_conninfo(**params), max_size=20)
        engines.add(self._kit)
        return super().create_connect_args(url)

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> Any:
        """Return the same for async engines."""
        return AsyncSuiteDialect


class AsyncSuiteDialect(SuiteDialect, ServerlessPgAsyncDialect):
    """The same over an `AsyncEngine`."""

    supports_statement_cache = True


registry.register(f"{NAME}_async", __name__, "AsyncSuiteDialect")
