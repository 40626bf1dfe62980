"""What one message is answered: its results, taken in without waiting. The shells differ in how they wait for them."""

from __future__ import annotations

from psycopg import OperationalError, errors
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.session import AnyConnection


class ExchangeTimeout(OperationalError):
    """No answer within the deadline. The connection is in an unknown state: close it."""


class Answers(list[PGresult]):
    """The results that arrived so far. They outlive the generator, which an error or a cancellation may end."""

    __slots__ = ("conn", "failed")

    conn: AnyConnection | None
    failed: PGresult | None

    def __getattr__(self, name: str) -> None:
        """Nothing was sent yet: there is no connection, and no failure."""
        if name not in self.__slots__:
            raise AttributeError(name)

    @property
    def error(self) -> errors.Error | None:
        """The exception that psycopg would raise for the first result that is an error, if there is one."""
        if self.failed is None:
            return None
        encoding = "utf-8" if self.conn is None else self.conn.info.encoding
        return errors.error_from_result(self.failed, encoding=encoding)

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


def advance(pgconn: PGconn, answers: Answers) -> bool:
    """Take in the results that have arrived, without waiting, and tell whether the exchange is complete.

    SQL errors are results, not exceptions; the first is remembered. Raises ``OperationalError`` for a COPY, which
    nobody here would end.
    """
    is_busy, get_result, add = pgconn.is_busy, pgconn.get_result, answers.append
    while not is_busy():
        result = get_result()
        if result is None:
            return True
        add(result)
        if result.status > TUPLES_OK:
            note_failure(result, answers)
    return False


def note_failure(result: PGresult, answers: Answers) -> None:
    """Remember `result` if it is the first error of `answers`. Raises ``OperationalError`` if it is no error."""
    if result.status != ExecStatus.FATAL_ERROR:
        raise OperationalError("a COPY is in progress on this connection")
    answers.failed = answers.failed or result


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
