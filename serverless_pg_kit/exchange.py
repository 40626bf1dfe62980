"""One bounded message out, its results in.

What needs no waiting is one function, `advance`, for both shells; they differ in how they wait. The deadline is in the
waiting, because a socket that lost its peer without a word would otherwise be waited for as long as TCP
likes.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from psycopg import Connection, OperationalError, errors
from psycopg.abc import RV, PQGen
from psycopg.pq import ConnStatus, ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.waiting import Steps, drive, is_ready


class ExchangeTimeout(OperationalError):
    """No answer within the deadline. The connection is in an unknown state: close it."""


class Answers(list[PGresult]):
    """The results that arrived so far. They outlive the generator, which an error or a cancellation may end."""

    conn: Connection[Any] | None = None
    failed: PGresult | None = None

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


CONNECTION_OK = int(ConnStatus.OK)
COMMAND_OK, TUPLES_OK, EMPTY_QUERY, FATAL_ERROR = map(
    int, (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY, ExecStatus.FATAL_ERROR)
)


def advance(pgconn: PGconn, answers: Answers) -> bool:
    """Take in the results that have arrived, without waiting, and tell whether the exchange is complete.

    SQL errors are results, not exceptions; the first is remembered. Raises ``OperationalError`` for a COPY, which
    nobody here would end.
    """
    while not pgconn.is_busy():
        result = pgconn.get_result()
        if result is None:
            return True
        answers.append(result)
        status = result.status
        if status == FATAL_ERROR:
            answers.failed = answers.failed or result
        elif status not in (COMMAND_OK, TUPLES_OK, EMPTY_QUERY):
            raise OperationalError("a COPY is in progress on this connection")
    return False


def run(conn: Connection[Any], message: str, deadline: Deadline, answers: Answers | None = None) -> Answers:
    """Send `message` in the simple protocol, holding the lock of `conn`; return the answers, complete.

    They are added to `answers` as they come, if that is given. Raises `ExchangeTimeout` at the deadline and
    ``psycopg.OperationalError`` if the connection is lost before the server has said anything about the last statement.
    """
    if answers is None:
        answers = Answers()
    answers.conn, pgconn = conn, conn.pgconn
    with conn.lock:
        pgconn.send_query(message.encode())
        while pgconn.flush():  # the server may have to be listened to before it takes the rest
            wait(pgconn, select.POLLIN | select.POLLOUT, deadline)
        wait(pgconn, select.POLLIN, deadline)
        while not advance(pgconn, answers):
            wait(pgconn, select.POLLIN, deadline)
    return answers


def wait(pgconn: PGconn, events: int, deadline: Deadline) -> None:
    """Wait for one of `events` and take in what came. Raises `ExchangeTimeout` if nothing happens before `deadline`."""
    if not is_ready(pgconn.socket, events, deadline.at - deadline.now()):
        check(deadline, False)
    pgconn.consume_input()


def check(deadline: Deadline, happened: bool) -> None:
    """Raise `ExchangeTimeout` if nothing happened before `deadline`."""
    if not happened and not deadline.remaining():
        raise ExchangeTimeout("the server did not answer in time")


def roll_back(conn: Connection[Any], deadline: Deadline) -> None:
    """Do what ``conn.rollback()`` does, within `deadline`. Raises `ExchangeTimeout` and what psycopg raises.

    A ROLLBACK behind psycopg's back would leave its cache of prepared statements wrong.
    """
    with conn.lock:
        drive(bounded(conn._rollback_gen(), conn.pgconn, deadline))


def bounded(
    gen: PQGen[RV], pgconn: PGconn, deadline: Deadline, late: Callable[[], Deadline] | None = None
) -> Steps[RV]:
    """Translate one of psycopg's own generators, and end it at `deadline`, after calling `late` if it is given: that
    may help it to an end of its own until the new deadline that it returns."""
    try:
        wanted = next(gen)
        while True:
            events = (select.POLLIN if wanted & Wait.R else 0) | (select.POLLOUT if wanted & Wait.W else 0)
            if (yield pgconn.socket, events, deadline.remaining()):
                wanted = gen.send(Ready(wanted))
            elif late is not None and not deadline.remaining():
                deadline, late = late(), None
            else:
                check(deadline, False)
    except StopIteration as done:
        result: RV = done.value
        return result


def is_busy(conn: Connection[Any]) -> bool:
    """Tell whether something on `conn` is not finished: a COPY, a pipeline, a generator that holds its lock, a
    ``transaction()`` block or a two-phase transaction. psycopg itself would refuse to commit then."""
    return (
        conn.pgconn.transaction_status == TransactionStatus.ACTIVE
        or conn.pgconn.pipeline_status != PipelineStatus.OFF
        or conn._num_transactions > 0
        or (conn._tpc is not None and not conn._tpc[1])
        or conn.lock.locked()
    )


def is_alive(pgconn: PGconn) -> bool:
    """Look at the socket of an idle connection, without waiting and without a round trip.

    A healthy idle connection has nothing to read but now and then a notice or notification, which is consumed. It
    takes two reads to see a death: the first swallows the server's farewell. A peer lost in silence is not seen.
    """
    poll = select.poll()
    try:
        poll.register(pgconn.socket, select.POLLIN)
        while poll.poll(0):
            pgconn.consume_input()
            pgconn.is_busy()  # reads what came: a farewell reaches the notice handlers
    except OperationalError:
        return False
    return pgconn.status == CONNECTION_OK


def as_text(value: bytes | None) -> str | None:
    """Return `value` as text; ``None`` (SQL's NULL, or nothing) stays."""
    return None if value is None else value.decode(errors="replace")
