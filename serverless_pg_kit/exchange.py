"""One bounded message out, its results in.

Written once as a generator, to be driven blocking or not. The deadline is inside, because a socket that lost its peer
without a word would otherwise be waited for as long as TCP likes.
"""

from __future__ import annotations

import select
from typing import Any

from psycopg import Connection, OperationalError, errors
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.waiting import Steps, drive, is_ready


class ExchangeTimeout(OperationalError):
    """No answer within the deadline. The connection is in an unknown state: close it."""


class Answers(list[PGresult]):
    """The results that arrived so far. They outlive the generator, which an error or a cancellation may end.

    `encoding` is the client's, by Python's name.
    """

    encoding: str = "utf-8"

    @property
    def error(self) -> errors.Error | None:
        """The exception that psycopg would raise for the first result that is an error, if there is one."""
        for result in self:
            if result.status == ExecStatus.FATAL_ERROR:
                return errors.error_from_result(result, encoding=self.encoding)
        return None

    @property
    def commits(self) -> int:
        """How many transactions were committed."""
        return sum(result.command_status == b"COMMIT" for result in self)

    @property
    def rows(self) -> list[list[str | None]]:
        """The rows of the last result that has any columns, as text."""
        table = next((result for result in reversed(self) if result.status == ExecStatus.TUPLES_OK), None)
        if table is None:
            return []
        return [
            [as_text(table.get_value(row, column)) for column in range(table.nfields)] for row in range(table.ntuples)
        ]


def exchange(pgconn: PGconn, message: str, deadline: Deadline, answers: Answers) -> Steps[None]:
    """Send `message` in the simple protocol and add its results to `answers` as they come.

    Raises `ExchangeTimeout` at the deadline and ``psycopg.OperationalError`` if the connection is lost before the
    server has said anything about the last statement. SQL errors are results, not exceptions.
    """
    pgconn.send_query(message.encode())
    while pgconn.flush():  # the server may have to be listened to before it takes the rest
        check(deadline, (yield pgconn.socket, select.POLLIN | select.POLLOUT, deadline.remaining()))
        pgconn.consume_input()
    while True:
        while pgconn.is_busy():
            check(deadline, (yield pgconn.socket, select.POLLIN, deadline.remaining()))
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return
        answers.append(result)
        if result.status in (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH):
            raise OperationalError("a COPY is in progress on this connection")


def check(deadline: Deadline, happened: bool) -> None:
    """Raise `ExchangeTimeout` if nothing happened before `deadline`."""
    if not happened and not deadline.remaining():
        raise ExchangeTimeout("the server did not answer in time")


def run(conn: Connection[Any], message: str, deadline: Deadline, answers: Answers | None = None) -> Answers:
    """Drive `exchange` on `conn`, holding its lock, and return the answers. Raises what `exchange` raises."""
    answers = Answers() if answers is None else answers
    answers.encoding = conn.info.encoding
    with conn.lock:
        drive(exchange(conn.pgconn, message, deadline, answers))
    return answers


def roll_back(conn: Connection[Any], deadline: Deadline) -> None:
    """Do what ``conn.rollback()`` does, within `deadline`. Raises `ExchangeTimeout` and what psycopg raises.

    A ROLLBACK behind psycopg's back would leave its cache of prepared statements wrong.
    """
    with conn.lock:
        drive(bounded(conn._rollback_gen(), conn.pgconn, deadline))


def bounded(gen: PQGen[None], pgconn: PGconn, deadline: Deadline) -> Steps[None]:
    """Translate one of psycopg's own generators, and end it at `deadline`."""
    wanted = next(gen, None)
    while wanted is not None:
        events = (select.POLLIN if wanted & Wait.R else 0) | (select.POLLOUT if wanted & Wait.W else 0)
        check(deadline, (yield pgconn.socket, events, deadline.remaining()))
        try:
            wanted = gen.send(Ready(wanted))
        except StopIteration:
            return


def is_busy(conn: Connection[Any]) -> bool:
    """Tell whether something on `conn` is not finished: a COPY, a pipeline, or a generator that holds its lock."""
    return (
        conn.pgconn.transaction_status == TransactionStatus.ACTIVE
        or conn.pgconn.pipeline_status != PipelineStatus.OFF
        or conn.lock.locked()
    )


def is_alive(pgconn: PGconn) -> bool:
    """Look at the socket of an idle connection, without waiting and without a round trip.

    A healthy idle connection has nothing to read but now and then a notice or notification, which is consumed. It
    takes two reads to see a death: the first swallows the server's farewell. A peer lost in silence is not seen.
    """
    try:
        while is_ready(pgconn.socket, select.POLLIN, 0):
            pgconn.consume_input()
    except OperationalError:
        return False
    return pgconn.status == ConnStatus.OK


def as_text(value: bytes | None) -> str | None:
    """Return `value` as text; ``None`` (SQL's NULL, or nothing) stays."""
    return None if value is None else value.decode(errors="replace")
