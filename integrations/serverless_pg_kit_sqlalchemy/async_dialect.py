"""The dialect of async engines."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from serverless_pg_kit_sqlalchemy.dialect import ServerlessPgDialect
from serverless_pg_kit_sqlalchemy.lending import REQUEST, check_arguments, dress
from serverless_pg_kit_sqlalchemy.pool import newest


class ServerlessPgAsyncDialect(ServerlessPgDialect, PGDialectAsync_psycopg):
    """`ServerlessPgDialect` over an `AsyncEngine`: what waits there is awaited here."""

    supports_statement_cache = True
    has_terminate = True

    def connect(self, *args: Any, **arguments: Any) -> Any:
        """Begin a request on the kit's engine and return its connection, idle. Raises what that raises."""
        check_arguments(args, arguments)

        async def begin() -> Any:
            request = self.kit.scope(join=False, transaction=self._transaction)
            try:
                conn = await request.connection
                dress(conn, request, self._adapters, arguments)
            except BaseException:
                request.fail()
                await request.end()
                raise
            return conn

        conn = self.loaded_dbapi.connect(async_creator_fn=begin)
        newest.set(conn)
        return conn

    def do_close(self, dbapi_connection: Any) -> None:
        """End the request of a connection, which goes back to the kit's engine. What is uncommitted is rolled back."""
        conn = self.get_driver_connection(dbapi_connection)
        request = vars(conn).pop(REQUEST, None)
        if request is None:
            await_only(conn.close())
        else:
            request.fail()
            await_only(request.end())

    def do_terminate(self, dbapi_connection: Any) -> None:
        """End the request of a connection, which is not to be used any more. It may be collected, outside of any task:
        then the next request on the kit's engine frees its place."""
        conn = self.get_driver_connection(dbapi_connection)
        conn.pgconn.finish()
        if in_greenlet():
            self.do_close(dbapi_connection)
        else:
            vars(conn).pop(REQUEST, None)
