"""How connections are closed all at once, from whatever thread and whatever they are doing, without waiting for them.

For the two moments in which nobody can be asked to finish: the process is about to end, or to be copied.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from psycopg import Error
from psycopg.pq import PollingStatus
from psycopg.pq import abc as pq_abc

from serverless_pg_kit.decisions.deadline import Deadline, deadline_after
from serverless_pg_kit.waiting import Steps, drive

if TYPE_CHECKING:
    from serverless_pg_kit.base import EngineBase

CANCEL_SECONDS = 0.2
"""Time for all running statements to be cancelled: with extensions, Lambda leaves a process 0.3 seconds in all."""


def hang_up(engines: Iterable[EngineBase], reason: str) -> None:
    """Close all connections of `engines`. Those in use lose their line, and what runs on them is cancelled.

    Takes at most `CANCEL_SECONDS`, whatever the servers do. Never raises. Those in use are announced as closed by
    whoever uses them; the idle ones here, at last, so that a listener that hangs keeps no connection open.
    """
    surrendered = [(engine, *engine._surrender()) for engine in engines]
    for _, idle, _ in surrendered:
        for slot in idle:
            slot.conn.pgconn.finish()
    busy = [slot.conn.pgconn for _, _, opened in surrendered for slot in opened if not slot.conn.closed]
    for pgconn in busy:
        end_line(pgconn)
    cancel_all(busy, deadline_after(CANCEL_SECONDS, time.monotonic))
    for engine, idle, _ in surrendered:
        for slot in idle:
            engine._drop(slot, reason)


def end_line(pgconn: pq_abc.PGconn) -> None:
    """Let the server see the end of the line once it has done what it is doing. Nothing can be sent any more.

    The connection is not closed here: freeing it under a thread that is inside libpq crashes the process.
    """
    with suppress(OSError, Error), socket.socket(fileno=os.dup(pgconn.socket)) as line:
        line.shutdown(socket.SHUT_WR)


def cancel_all(busy: list[pq_abc.PGconn], deadline: Deadline) -> None:
    """Cancel what runs on the connections `busy`, as far as that is done before `deadline`.

    They share the time out, so that one silent server does not keep the others from hearing. Needs libpq 17: before
    that, nothing bounds a cancel.
    """
    for position, pgconn in enumerate(busy):
        with suppress(Error):
            drive(cancel(pgconn, deadline.within(deadline.remaining() / (len(busy) - position))))


def cancel(pgconn: pq_abc.PGconn, deadline: Deadline) -> Steps[None]:
    """Ask the server of `pgconn` to cancel what it does; give up at `deadline`. Raises ``psycopg.Error``."""
    request = pgconn.cancel_conn()
    try:
        request.start()
        status: int = request.poll()
        while status in (PollingStatus.READING, PollingStatus.WRITING) and deadline.remaining():
            events = select.POLLIN if status == PollingStatus.READING else select.POLLOUT
            if (yield request.socket, events, deadline.remaining()):
                status = request.poll()
    finally:
        request.finish()
