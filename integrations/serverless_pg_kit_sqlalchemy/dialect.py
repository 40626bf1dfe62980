"""The dialect: psycopg's, with connections that an engine of the kit opens, gives out and takes back."""

from __future__ import annotations

from typing import Any

from psycopg.types import TypeInfo
from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import Pool

from serverless_pg_kit import AsyncEngine, CommitUnknown, Engine, TransactionFailed
from serverless_pg_kit.exchange import ExchangeTimeout
from serverless_pg_kit.scope_base import Begins
from serverless_pg_kit_sqlalchemy.lending import REQUEST, Adapters, check_arguments, dress
from serverless_pg_kit_sqlalchemy.pool import ServerlessPgPool, newest


class ServerlessPgDialect(PGDialect_psycopg):
    """``postgresql+psycopg`` whose connections are those of the engine in ``serverless_engine``."""

    supports_statement_cache = True

    def __init__(self, serverless_engine: Engine | AsyncEngine | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._kit = serverless_engine
        # An isolation level of the engine is set on each connection, which has to be idle for that.
        self._transaction: Begins = "ahead" if options.get("isolation_level") is None else False
        self._adapters = Adapters(
            loads=options.get("json_deserializer"),
            dumps=options.get("json_serializer"),
            inet_as_text=options.get("native_inet_types") is False,
        )

    @property
    def kit(self) -> Any:
        """The kit's engine. Raises ``ArgumentError`` if this dialect was made from its URL alone."""
        if self._kit is None:
            raise ArgumentError("make the engine by serverless_pg_kit_sqlalchemy.create_engine(engine): no URL will do")
        return self._kit

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        """Return the pool that leaves everything to the kit's engine."""
        return ServerlessPgPool

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> Any:
        """Return the dialect of async engines."""
        from serverless_pg_kit_sqlalchemy.async_dialect import ServerlessPgAsyncDialect  # it is made of this one

        return ServerlessPgAsyncDialect

    def create_connect_args(self, url: URL) -> Any:
        """Return nothing: where to connect to is known to the kit's engine."""
        return [], {}

    def _type_info_fetch(self, connection: Any, name: str) -> TypeInfo | None:
        info: TypeInfo | None = super()._type_info_fetch(connection, name)
        if name == "hstore":
            self._adapters = self._adapters._replace(hstore=info)
        return info

    def connect(self, *args: Any, **arguments: Any) -> Any:
        """Begin a request on the kit's engine and return its connection, idle. Raises what that raises."""
        check_arguments(args, arguments)
        request = self.kit.scope(join=False, transaction=self._transaction)
        try:
            conn = request.connection
            dress(conn, request, self._adapters, arguments)
        except BaseException:
            give_back(request)
            raise
        newest.set(conn)
        return conn

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        """Return the isolation level of a connection; one that was idle is so again."""
        was_idle = vars(self.get_driver_connection(dbapi_connection))[REQUEST].is_idle
        level = super().get_isolation_level(dbapi_connection)
        if was_idle:
            dbapi_connection.rollback()
        return level

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Roll back, but not in a forked child the transaction that its parent is in."""
        conn = self.get_driver_connection(getattr(dbapi_connection, "dbapi_connection", dbapi_connection))
        request = vars(conn).get(REQUEST)
        if request is None or request.is_open:
            if request is not None:
                request.note_rollback()
            super().do_rollback(dbapi_connection)

    def do_close(self, dbapi_connection: Any) -> None:
        """End the request of a connection, which goes back to the kit's engine. What is uncommitted is rolled back."""
        request = vars(dbapi_connection).pop(REQUEST, None)
        if request is None:
            dbapi_connection.close()
        else:
            give_back(request)

    def do_terminate(self, dbapi_connection: Any) -> None:
        """End the request of a connection, which is not to be used any more."""
        dbapi_connection.close()
        self.do_close(dbapi_connection)

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Tell whether `e` says that the connection is lost."""
        return bool(super().is_disconnect(e, connection, cursor)) or is_loss(e)


def give_back(request: Any) -> None:
    """End `request`, and roll back what SQLAlchemy has not committed."""
    request.fail()
    request.end()


def is_loss(error: BaseException) -> bool:
    """Tell whether `error` ends its connection: the server's last word is FATAL, in whatever language, and the kit has
    errors of its own."""
    if isinstance(error, (CommitUnknown, ExchangeTimeout)):
        return True
    if isinstance(error, TransactionFailed):
        return error.lost
    diagnostic = getattr(error, "diag", None)
    return getattr(diagnostic, "severity_nonlocalized", None) in ("FATAL", "PANIC")
