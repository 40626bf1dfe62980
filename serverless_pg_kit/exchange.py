"""What one message is answered: its results, taken in without waiting. The shells differ in how they wait for them."""

from __future__ import annotations

from collections.abc import Iterable

from psycopg import OperationalError, errors
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.session import AnyConnection


class ExchangeTimeout(OperationalError):
    """No answer within the deadline. The connection is in an unknown state: close it."""


class Answers(list[PGresult]):
    """The results that arrived of what was sent over `conn` (``None``: nothing was sent).

    They outlive whoever takes them in, whom an error or a cancellation may interrupt.
    """

    __slots__ = ("conn",)

    def __init__(self, results: Iterable[PGresult] = (), conn: AnyConnection | None = None) -> None:
        super().__init__(results)
        self.conn: AnyConnection | None = conn

    @property
    def failed(self) -> PGresult | None:
        """The first result that is an error, if there is one."""
        return next((result for result in self if result.status == FATAL_ERROR), None)

    @property
    def error(self) -> errors.Error | None:
        """The exception that psycopg would raise for the first result that is an error, if there is one."""
        failed = self.failed
        if failed is None:
            return None
        encoding = "utf-8" if self.conn is None else self.conn.info.encoding
        return errors.error_from_result(failed, encoding=encoding)

    @property
    def commits(self) -> int:
        """How many transactions were committed."""
        return sum(result.command_status == b"COMMIT" for result in self)

    @property
    def rows(self) -> list[list[str | None]]:
        """The rows of the last result that has any columns, as text."""
        tables = self.tables
        return tables[-1] if tables else []

    @property
    def tables(self) -> list[list[list[str | None]]]:
        """The rows of every result that has any columns, as text."""
        return [
            [[as_text(table.get_value(row, column)) for column in range(table.nfields)] for row in range(table.ntuples)]
            for table in self
            if table.status == ExecStatus.TUPLES_OK
        ]


TUPLES_OK = int(ExecStatus.TUPLES_OK)
"""The last of the successes (after EMPTY_QUERY and COMMAND_OK), in libpq's order."""

FATAL_ERROR = int(ExecStatus.FATAL_ERROR)
"""Any error that ends a statement."""

MANY = 1000
"""More results than any message of the kit has: a COPY would give one without end."""


def advance(pgconn: PGconn, results: list[PGresult]) -> bool:
    """Add to `results` those that have arrived, without waiting, and tell whether the exchange is complete.

    SQL errors are results, not exceptions. Raises ``OperationalError`` for a COPY, which nobody here would end.
    """
    for _ in range(MANY):
        if pgconn.is_busy():
            return False
        if (result := pgconn.get_result()) is None:
            return True
        results.append(result)
    raise OperationalError("a COPY is in progress on this connection")


def check(deadline: Deadline, happened: bool) -> None:
    """Raise `ExchangeTimeout` if nothing happened before `deadline`."""
    if not happened and not deadline.remaining():
        raise ExchangeTimeout("the server did not answer in time")


def is_busy(conn: AnyConnection) -> bool:
    """Tell whether something on `conn` is not finished: a COPY, a pipeline, a generator that holds its lock, a
    ``transaction()`` block or a two-phase transaction. psycopg itself would refuse to commit then."""
    return (
        conn.pgconn.transaction_status == TransactionStatus.ACTIVE
        or conn.pgconn.pipeline_status != PipelineStatus.OFF
        or conn._num_transactions > 0
        or (conn._tpc is not None and not conn._tpc[1])
        or conn.lock.locked()
    )


def as_text(value: bytes | None) -> str | None:
    """Return `value` as text; ``None`` (SQL's NULL, or nothing) stays."""
    return None if value is None else value.decode(errors="replace")
