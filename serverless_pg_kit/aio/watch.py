"""Watches how a request uses its connection, where the server alone cannot: between the statements.

psycopg does all its waiting through ``conn.wait``. The watch stands in front of it, and hands on to it as long as there
is nothing to do: no thread, no timer.
"""

from __future__ import annotations

import math
import threading
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from psycopg import Error, OperationalError, capabilities
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus

from serverless_pg_kit.aio.waiting import uninterrupted
from serverless_pg_kit.decisions.deadline import ORPHAN_GRACE
from serverless_pg_kit.decisions.role import is_refused_write
from serverless_pg_kit.line import NOT_READY
from serverless_pg_kit.session import put

if TYPE_CHECKING:
    from serverless_pg_kit.slots import Slot

GRACE = ORPHAN_GRACE / 1000
"""Seconds after the open in which a statement may begin so that the server's time-out for it comes soon enough."""

PATIENCE = GRACE + 0.05
"""Seconds after the deadline in which the server's own time-out must have been heard of."""

CANCEL_SECONDS = 0.25
"""Time for a cancellation to reach the server, and then again for the cancelled statement to end."""


class Watch:
    """Stands in for the ``wait`` of a connection, request by request.

    The server's time-out holds for each statement anew: one that begins late in a request would outlive its deadline.
    The watch cancels it there. One that begins in the first moments, up to `server_helps_until`, is left to the
    server's own time-out, which comes hardly later; a server that says nothing even then is not asked again. Behind a
    pooler there is no such time-out. `until` is the deadline, by the engine's clock.

    The watch also notes whether a write was refused, which may be caught. As long as it `must_end` for nothing it may
    stay where it is, and watch the next request as well.
    """

    __slots__ = (
        "_baseline",
        "_conn",
        "_line",
        "_now",
        "_own",
        "_wait",
        "cancelled",
        "must_end",
        "refused_write",
        "server_helps_until",
        "until",
    )

    def __init__(self, slot: Slot) -> None:
        self._conn, self._line, self._baseline = slot.conn, slot.line, slot.baseline
        self.until: float = math.inf
        self.server_helps_until: float = math.inf
        self.cancelled: bool = False
        self.refused_write: bool = False
        self.must_end: bool = False

    def begin(self, begun: float, until: float, now: Callable[[], float], server_helps: bool | None) -> Any:
        """Watch a request from `begun` to `until`, both by the clock `now`; `server_helps` to end its statements.

        Returns what stands in ``conn.wait`` until `end` is called.
        """
        self.until, self._now = until, now
        self.server_helps_until = begun + GRACE if server_helps else begun
        self.cancelled = self.refused_write = self.must_end = False
        own = vars(self._conn)
        self._own, self._wait = own.get("wait"), self._conn.wait
        hook = own["wait"] = self.wait
        self._baseline.expect("wait", hook)
        return hook

    def end(self) -> bool:
        """Give ``conn.wait`` back: what follows is the engine's own business. Tell whether anything was noted."""
        put(vars(self._conn), "wait", self._own)
        self._baseline.expect("wait", self._own)
        return self.cancelled or self.refused_write

    async def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Do what ``conn.wait`` does. Raises what that raises: ``QueryCanceled`` for a statement cancelled here."""
        until = self.until
        try:
            if until == math.inf and not (args or kwargs):  # async only - psycopg's own can be cancelled once
                return await self._line.wait(gen, until, self._now)  # type: ignore[no-any-return]  # async only
            # What names an interval or a time-out of its own, as `notifies()` does, ends by itself.
            if args or kwargs or until == math.inf:
                return await self._wait(gen, *args, **kwargs)  # type: ignore[no-any-return]
            return await self._line.wait(gen, until, self._now, self._late)  # type: ignore[no-any-return]
        except CancelledError:  # async only
            await uninterrupted(self._give_up(gen))  # async only
            raise  # async only
        except Error as error:
            if is_refused_write(error):
                self.refused_write = self.must_end = True
            raise

    async def _late(self, begun: float) -> float:
        """Return the time until which a statement that has met the deadline may take to end: it is left to the server's
        time-out, or cancelled. It was `begun` then."""
        return self.until + PATIENCE if begun < self.server_helps_until else await self._cancel()

    async def _cancel(self) -> float:
        """Ask the server to cancel what runs; return the time until which that may take to end.

        Before version 17 libpq can only block while it asks: that is done elsewhere, so that a server which says
        nothing holds nobody.
        """
        self.cancelled = self.must_end = True
        if capabilities.has_cancel_safe():
            with suppress(OperationalError):
                await self._conn.cancel_safe(timeout=CANCEL_SECONDS)
        else:
            threading.Thread(target=self._conn.cancel, daemon=True).start()
        return self._now() + CANCEL_SECONDS

    async def _give_up(self, gen: PQGen[Any]) -> None:  # async only
        """Cancel what runs, as psycopg does when a task is cancelled: the connection can go on."""  # async only
        if self._conn.pgconn.transaction_status == TransactionStatus.ACTIVE:  # async only
            with suppress(Error):  # async only
                await self._line.wait(gen, await self._cancel(), self._now, ready=NOT_READY)  # async only


class PauseWatch(Watch):
    """A watch that also notes the longest pause between two uses of the connection."""

    __slots__ = ("_used_at", "longest_pause")

    def begin(self, begun: float, until: float, now: Callable[[], float], server_helps: bool | None) -> Any:
        """Watch a request as any watch does."""
        hook = super().begin(begun, until, now, server_helps)
        self.must_end = True
        self.longest_pause: float = 0.0
        self._used_at = now()
        return hook

    def end(self) -> bool:
        """Give ``conn.wait`` back, and tell that something was noted."""
        super().end()
        self._note_pause()
        return True

    async def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Do what any watch does."""
        self._note_pause()
        try:
            return await super().wait(gen, *args, **kwargs)
        finally:
            self._used_at = self._now()

    def _note_pause(self) -> None:
        self.longest_pause = max(self.longest_pause, self._now() - self._used_at)
