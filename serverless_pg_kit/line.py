"""A connection's own end of the line: one bounded message out, its answers in, and a look whether it still lives.

The deadline is in the waiting, because a socket that lost its peer without a word would otherwise be waited for as long
as TCP likes.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from psycopg import Connection, OperationalError, errors, waiting
from psycopg.abc import RV, PQGen
from psycopg.pq import ConnStatus
from psycopg.pq.abc import PGresult
from psycopg.waiting import Ready, Wait

from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.exchange import Answers, advance, check
from serverless_pg_kit.waiting import LONGEST, is_ready

if TYPE_CHECKING:
    from typing import TypeAlias

CONNECTION_OK = int(ConnStatus.OK)
READABLE = int(Wait.R)
NOT_READY: Ready = Ready.NONE
"""What a generator of psycopg's is told if what it waits for has not happened. Those in C take no ``None``."""

EVENTS = {Wait.R: select.POLLIN, Wait.W: select.POLLOUT, Wait.RW: select.POLLIN | select.POLLOUT}

WaitTimeout: type[OperationalError] | None = getattr(errors, "_WaitTimeout", None)
"""What psycopg's own waiting raises after a time that it is given; ``None`` before 3.3.6, which takes none."""

INTERVAL = 0.1
"""Seconds after which that looks whether the process was interrupted, as it does for psycopg's connections."""

LOOK = round(INTERVAL * 1000)
"""Milliseconds without an answer after which it is looked whether the message was sent."""

Late: TypeAlias = Callable[[float], float]
"""Is called at the deadline of a statement, with the time at which that began; returns until when it may still take."""


class LineBase:
    """The line to the server of `conn`, watched by one poll object while it lives: what needs no waiting.

    `poll` waits for something to read, for as many milliseconds as it is given or, with ``None``, without end.
    """

    __slots__ = ("conn", "poll")

    def __init__(self, conn: Any) -> None:
        self.conn: Any = conn
        polling = select.poll()
        polling.register(conn.pgconn.socket, select.POLLIN)
        self.poll: Callable[[float | None], list[tuple[int, int]]] = polling.poll

    def is_alive(self) -> bool:
        """Look at the socket of an idle connection, without waiting and without a round trip.

        A healthy idle connection has nothing to read but now and then a notice or notification, which is consumed. It
        takes two reads to see a death: the first swallows the server's farewell. A peer lost in silence is not seen.
        """
        pgconn = self.conn.pgconn
        try:
            while self.poll(0):
                pgconn.consume_input()
                pgconn.is_busy()  # reads what came: a farewell reaches the notice handlers
        except OperationalError:
            return False
        return bool(pgconn.status == CONNECTION_OK)


class Line(LineBase):
    """The line of a connection that blocks."""

    __slots__ = ()

    conn: Connection[Any]

    def close(self) -> None:
        """Close the connection, whatever its state. Nothing is waited for."""
        self.conn.close()

    def run(self, message: bytes, deadline: Deadline, answers: Answers | None = None) -> Answers:
        """Send `message` in the simple protocol, holding the connection's lock; return the answers, complete.

        They are added to `answers` as they come, if that is given. Raises `ExchangeTimeout` at the deadline and
        ``psycopg.OperationalError`` if the connection is lost before the server has said anything about the last
        statement.
        """
        answers = Answers() if answers is None else answers
        with self.conn.lock:
            self.conn.pgconn.send_query(message)
            answers.conn = self.conn
            self._take_in(answers, deadline)
        return answers

    def _take_in(self, results: list[PGresult], deadline: Deadline) -> None:
        pgconn = self.conn.pgconn
        while pgconn.flush():  # the server may have to be listened to before it takes the rest
            self._wait_for(select.POLLIN | select.POLLOUT, deadline)
        while not advance(pgconn, results):  # the answer may have come already, with the rest still to send
            self._wait_for(select.POLLIN, deadline)

    def _wait_for(self, events: int, deadline: Deadline) -> None:
        pgconn = self.conn.pgconn
        check(deadline, is_ready(pgconn.socket, events, deadline.remaining()))
        pgconn.consume_input()

    def receive(self, results: list[PGresult], begun: float, until: float, now: Callable[[], float]) -> None:
        """Add to `results` those of a message of the kit's that was just sent, from `begun`, which is now, until
        `until`, both by the clock `now`. Raises what `run` raises.

        For a caller who holds the connection's lock, and in a hurry: he looks at the last one, because what follows an
        error in a message is not run.
        """
        pgconn, poll, seconds = self.conn.pgconn, self.poll, until - begun
        while True:
            if poll(LOOK if seconds > INTERVAL else seconds * 1000 if seconds > 0 else 0):
                pgconn.consume_input()
            elif pgconn.flush():  # the socket takes a short message at once: that is looked at only if no answer comes
                self._take_in(results, Deadline(until, now))
                return
            else:
                check(Deadline(until, now), False)
            while not pgconn.is_busy():  # this is `advance` without a call; no message of the kit's holds a COPY
                if (result := pgconn.get_result()) is None:
                    return
                results.append(result)
            seconds = until - now()

    def roll_back(self, deadline: Deadline) -> None:
        """Do what ``conn.rollback()`` does, within `deadline`. Raises `ExchangeTimeout` and what psycopg raises.

        A ROLLBACK behind psycopg's back would leave its cache of prepared statements wrong.
        """
        with self.conn.lock:
            self.wait(self.conn._rollback_gen(), deadline.at, deadline.now)

    def wait(self, gen: PQGen[RV], until: float, now: Callable[[], float], late: Late | None = None) -> RV:
        """Do what ``conn.wait`` does with one of psycopg's own generators, until `until` by the clock `now`.

        Then `late` is called, if it is given, with the time at which this began: that may help the generator to an end
        of its own until the later time that it returns. Raises `ExchangeTimeout` after that, and what `gen` raises.
        """
        begun, ready = now(), None
        if WaitTimeout is not None:
            try:  # in C, if psycopg has that
                return waiting.wait(gen, self.conn.pgconn.socket, INTERVAL, until - begun)
            except WaitTimeout:
                ready = NOT_READY  # the generator stands where it waits
        seconds = until - now()
        try:
            wanted = next(gen) if ready is None else gen.send(ready)
            while True:
                if wanted != READABLE:
                    happened = is_ready(self.conn.pgconn.socket, EVENTS[wanted], seconds)
                else:
                    happened = bool(self.poll(None if seconds > LONGEST else seconds * 1000 if seconds > 0 else 0))
                if happened:
                    wanted = gen.send(wanted)  # Ready and Wait have the same values
                elif late is not None and now() >= until:
                    until, late = late(begun), None
                else:
                    check(Deadline(until, now), False)
                seconds = until - now()
        except StopIteration as done:
            result: RV = done.value
            return result
