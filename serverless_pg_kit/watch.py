"""Watches how a request uses its connection, where the server alone cannot: between the statements.

psycopg does all its waiting through ``conn.wait``. The watch stands in front of it, and hands on to it as long as there
is nothing to do: no thread, no timer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection
from psycopg.abc import RV, PQGen

from serverless_pg_kit.decisions.deadline import ORPHAN_GRACE, Deadline
from serverless_pg_kit.exchange import bounded
from serverless_pg_kit.waiting import drive


@contextmanager
def counted_waits(conn: Connection[Any]) -> Iterator[list[None]]:
    """Yield a list that grows by one with each time that `conn` talks to the server inside the block."""
    waits: list[None] = []
    wait = conn.wait

    def counting(*args: Any, **kwargs: Any) -> Any:
        waits.append(None)
        return wait(*args, **kwargs)

    vars(conn)["wait"] = counting
    try:
        yield waits
    finally:
        del vars(conn)["wait"]


CANCEL_SECONDS = 1.0
"""Time for a cancelled statement to end."""


class Watch:
    """Stands in for the ``wait`` of `conn` during one request that ends at `deadline`. `monotonic` is the clock.

    The server's time-out holds for each statement anew: one that begins late in a request would outlive its deadline.
    The watch cancels it there. `server_helps` says that the server has that time-out at all: not behind a pooler. The
    watch also notes the longest pause between two uses.
    """

    def __init__(
        self, conn: Connection[Any], deadline: Deadline, monotonic: Callable[[], float], *, server_helps: bool
    ) -> None:
        self._conn = conn
        self._wait = conn.wait
        self._deadline = deadline
        self._monotonic = monotonic
        self._used_at = monotonic()
        self._server_does_until = self._used_at + (ORPHAN_GRACE / 1000 if server_helps else 0.0)
        self.longest_pause: float = 0.0
        vars(conn)["wait"] = self

    def end(self) -> None:
        """Give ``conn.wait`` back: what follows is the engine's own business."""
        self._note_use()
        vars(self._conn).pop("wait", None)

    def __call__(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Do what ``conn.wait`` does. Raises what that raises: ``QueryCanceled`` for a statement cancelled here."""
        self._note_use()
        try:
            # What names an interval or a time-out of its own, as `notifies()` does, ends by itself.
            if args or kwargs or self._used_at < self._server_does_until or self._deadline.at == math.inf:
                return self._wait(gen, *args, **kwargs)
            return drive(bounded(gen, self._conn.pgconn, self._deadline, self._cancel))
        finally:
            self._used_at = self._monotonic()

    def _note_use(self) -> None:
        now = self._monotonic()
        self.longest_pause = max(self.longest_pause, now - self._used_at)
        self._used_at = now

    def _cancel(self) -> Deadline:
        self._conn.cancel_safe(timeout=CANCEL_SECONDS)
        return Deadline(self._monotonic() + CANCEL_SECONDS, self._monotonic)
