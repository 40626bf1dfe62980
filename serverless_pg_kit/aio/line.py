"""The async counterpart of `serverless_pg_kit.line`."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from psycopg import AsyncConnection
from psycopg.abc import RV, PQGen
from psycopg.pq.abc import PGresult
from psycopg.waiting import Ready

from serverless_pg_kit.aio.waiting import is_ready
from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.exchange import Answers, advance, check
from serverless_pg_kit.line import EVENTS, LineBase
from serverless_pg_kit.session import Baseline

LOOK = 0.5
"""Seconds until a statement that waits looks whether its connection was closed by another task: the event loop is not
told."""


def hang_up(descriptor: int) -> None:
    """End the connection of a socket that a task still waits for: that wakes it, and it gets an error.

    Closed under its eyes, the descriptor could be a new connection's by the time it wakes and lets go of it.
    """
    with socket.socket(fileno=os.dup(descriptor)) as line, suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


class Line(LineBase):
    """The line to the server of `conn`, in whichever event loop runs."""

    __slots__ = ("_loop",)

    conn: AsyncConnection[Any]
    _loop: weakref.ref[asyncio.AbstractEventLoop]

    def __init__(self, conn: Any) -> None:
        super().__init__(conn)
        self._loop = weakref.ref(asyncio.get_running_loop())

    def close(self) -> None:
        """Close the connection, whatever its state. Nothing is waited for, so no event loop is needed."""
        if self.conn.lock.locked() and not self.conn.closed:
            hang_up(self.conn.pgconn.socket)
            return
        closing = self.conn.close()
        with suppress(StopIteration):
            closing.send(None)
            closing.close()  # a subclass waits for something
            self.conn.pgconn.finish()

    def enter_loop(self, baseline: Baseline) -> None:
        """Forget the event loop of earlier requests, if it was another one. Only the connection's lock may know it: a
        lock that was contended works in no other loop. The `baseline` learns of the new one."""
        loop = asyncio.get_running_loop()
        if self._loop() is not loop:
            self._loop = weakref.ref(loop)
            if not self.conn.lock.locked():
                self.conn.lock = asyncio.Lock()
                baseline.expect("lock", self.conn.lock)

    async def run(self, message: bytes, deadline: Deadline, answers: Answers | None = None) -> Answers:
        """Send `message` in the simple protocol, holding the connection's lock; return the answers, complete.

        They are added to `answers` as they come, if that is given. Raises `ExchangeTimeout` at the deadline and
        ``psycopg.OperationalError`` if the connection is lost before the server has said anything about the last
        statement.
        """
        answers = Answers() if answers is None else answers
        async with self.conn.lock:
            self.conn.pgconn.send_query(message)
            answers.conn = self.conn
            await self._take_in(answers, deadline)
        return answers

    async def _take_in(self, results: list[PGresult], deadline: Deadline) -> None:
        pgconn = self.conn.pgconn
        while pgconn.flush():  # the server may have to be listened to before it takes the rest
            await self._wait_for(select.POLLIN | select.POLLOUT, deadline)
        while not advance(pgconn, results):  # the answer may have come already, with the rest still to send
            await self._wait_for(select.POLLIN, deadline)

    async def _wait_for(self, events: int, deadline: Deadline) -> None:
        pgconn = self.conn.pgconn
        check(deadline, await is_ready(pgconn.socket, events, deadline.at - deadline.now()))
        pgconn.consume_input()

    async def receive(self, results: list[PGresult], begun: float, until: float, now: Callable[[], float]) -> None:
        """Add to `results` those of a message of the kit's that was just sent, from `begun`, which is now, until
        `until`, both by the clock `now`. Raises what `run` raises.

        For a caller who holds the connection's lock, and in a hurry: he looks at the last one, because what follows an
        error in a message is not run.
        """
        await self._take_in(results, Deadline(until, now))

    async def roll_back(self, deadline: Deadline) -> None:
        """Do what ``conn.rollback()`` does, within `deadline`. Raises `ExchangeTimeout` and what psycopg raises.

        A ROLLBACK behind psycopg's back would leave its cache of prepared statements wrong.
        """
        async with self.conn.lock:
            await self.wait(self.conn._rollback_gen(), deadline.at, deadline.now)

    async def wait(
        self,
        gen: PQGen[RV],
        until: float,
        now: Callable[[], float],
        late: Callable[[float], Any] | None = None,
        ready: Ready | None = None,
    ) -> RV:
        """Do what ``conn.wait`` does with one of psycopg's own generators, until `until` by the clock `now`.

        Then `late` is called, if it is given, with the time at which this began: that may help the generator to an end
        of its own until the later time that it returns. Raises `ExchangeTimeout` after that, and what `gen` raises. One
        that was begun before is told first what is `ready`.
        """
        begun = now()
        try:
            wanted = next(gen) if ready is None else gen.send(ready)
            while True:
                if await is_ready(self.conn.pgconn.socket, EVENTS[wanted], min(LOOK, until - now())):
                    wanted = gen.send(wanted)  # Ready and Wait have the same values
                elif late is not None and now() >= until:
                    until, late = await late(begun), None
                else:
                    check(Deadline(until, now), False)
        except StopIteration as done:
            result: RV = done.value
            return result
